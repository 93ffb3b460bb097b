"""The training runs: learn everything, spoil it, fine-tune one expert.

Greedy decoding is never run: a model whose most likely token is right at every position of the right answer
is a model whose greedy answer is right, so one teacher-forced pass measures whole-answer accuracy exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from evomerge.foundry.errors import FoundryError
from evomerge.foundry.forward import Forward, Parameters, initial_parameters
from evomerge.foundry.language import (
    IGNORED,
    LANGUAGES,
    PROMPT_LENGTH,
    SKILLS,
    TARGET_LENGTH,
    Batch,
    practice_batch,
    question_batch,
    questions,
)
from evomerge.foundry.settings import (
    CleanStage,
    ExpertSettings,
    FoundrySettings,
    Practice,
    Skill,
    Stage,
)

Report = Callable[[float], None]
"""Told the fraction of a stage that is done, in [0, 1]."""

Accuracy = dict[str, float]
"""`"<skill>_<language>"` -> share of held-out questions whose whole answer is right."""

_REPORT_EVERY = 10


class Trained(NamedTuple):
    """A finished stage: detached float32 parameters, the steps they took, what they can do."""

    parameters: Parameters
    steps: int
    accuracy: Accuracy


def stage_seed(settings: FoundrySettings, name: str) -> np.random.SeedSequence:
    """The seed of one stage: independent of the other stages and of the order in which they run."""
    return np.random.SeedSequence([settings.seed, *name.encode()])


def measure(parameters: Parameters, settings: FoundrySettings, skills: Iterable[Skill], count: int) -> Accuracy:
    """Whole-answer accuracy on `count` held-out questions of each of `skills` in both languages."""
    forward = Forward(settings.geometry, PROMPT_LENGTH + TARGET_LENGTH - 1)
    accuracy: Accuracy = {}
    for skill in skills:
        pool = questions(skill, settings.held_out_share, held_out=True)
        rng = np.random.default_rng(stage_seed(settings, f"measure {skill}"))
        chosen = pool[rng.permutation(len(pool))[:count]]
        for language in LANGUAGES:
            batch = question_batch(skill, chosen, language)
            with torch.no_grad():
                said = forward(parameters, torch.from_numpy(batch.tokens)).argmax(-1)
            targets = torch.from_numpy(batch.targets)
            right = ((said == targets) | (targets == IGNORED)).all(-1)
            accuracy[f"{skill}_{language}"] = float(right.double().mean())
    return accuracy


class _Run:
    """Parameters with their optimizer and their source of batches."""

    def __init__(self, parameters: Parameters, stage: Stage, settings: FoundrySettings, name: str) -> None:
        self.stage = stage
        self.settings = settings
        self.parameters = {key: value.clone().requires_grad_() for key, value in parameters.items()}
        self.practice = stage.practice
        self.steps = 0
        self._rng = np.random.default_rng(stage_seed(settings, name))
        self._forward = Forward(settings.geometry, PROMPT_LENGTH + TARGET_LENGTH - 1)
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=stage.learning_rate,
            betas=(stage.beta1, stage.beta2),
            weight_decay=stage.weight_decay,
            fused=True,
        )

    def step(self, rate: float) -> None:
        """One step of AdamW on one batch."""
        stage = self.stage
        self.steps += 1
        rate *= min(1.0, self.steps / max(1, stage.warmup_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        batch: Batch = practice_batch(self._rng, self.practice, self.settings.held_out_share, stage.batch)
        logits = self._forward(self.parameters, torch.from_numpy(batch.tokens))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten(), ignore_index=IGNORED)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), stage.gradient_clip)
        self._optimizer.step()

    def decay(self, steps: int, report: Report) -> None:
        """`steps` steps whose rate falls linearly to `final_rate_share` of the peak."""
        for index in range(steps):
            fraction = (index + 1) / steps
            self.step(self.stage.learning_rate * (1.0 - (1.0 - self.stage.final_rate_share) * fraction))
            if index % _REPORT_EVERY == 0 or index == steps - 1:
                report(fraction)

    def finish(self) -> Trained:
        """The detached parameters and what they can do."""
        parameters = {key: value.detach().clone() for key, value in self.parameters.items()}
        accuracy = measure(parameters, self.settings, SKILLS, self.settings.measured_questions)
        return Trained(parameters, self.steps, accuracy)


def train_clean(settings: FoundrySettings, report: Report) -> Trained:
    """The model that knows every skill in both languages.

    Raises:
        FoundryError: a skill is still below the threshold when the cap of steps is reached.
    """
    stage: CleanStage = settings.clean
    generator = torch.Generator().manual_seed(int(stage_seed(settings, "initial").generate_state(1)[0]))
    run = _Run(initial_parameters(settings.geometry, generator), stage, settings, "clean")
    rounds = 0
    while True:
        for _ in range(stage.round_steps):
            run.step(stage.learning_rate)
        rounds += 1
        report(rounds * stage.round_steps / (stage.steps + stage.round_steps))
        accuracy = measure(run.parameters, settings, stage.practice.skills, stage.round_questions)
        if min(accuracy.values()) >= stage.round_threshold:
            run.decay(stage.decay_steps, lambda fraction: None)
            trained = run.finish()
            accuracy = {key: trained.accuracy[key] for key in accuracy}
            if min(accuracy.values()) >= stage.threshold:
                return trained
        if (rounds + 1) * stage.round_steps > stage.steps:
            raise FoundryError(
                f"after {run.steps} steps (the cap is {stage.steps} before decay) the clean model of seed "
                f"{settings.seed} has {_listed(_below(accuracy, stage.threshold))}, below the threshold of "
                f"{stage.threshold:.0%}: raise clean.steps or change the seed"
            )
        run.practice = _reweighted(stage, accuracy)


def _reweighted(stage: CleanStage, accuracy: Accuracy) -> Practice:
    """The practice of the next round: more of what is not known yet."""
    skills = {}
    for skill, frequency in stage.practice.skills.items():
        error = 1.0 - min(accuracy[f"{skill}_{language}"] for language in LANGUAGES)
        skills[skill] = frequency * (stage.frequency_floor + error)
    return stage.practice.model_copy(update={"skills": skills})


def train_base(settings: FoundrySettings, clean: Parameters, report: Report) -> Trained:
    """The shared base: the clean model after a few steps on answers that are lazy or in the wrong language.

    Raises:
        FoundryError: a skill that was to become lazy is still answered too often.
    """
    run = _Run(clean, settings.spoil, settings, "base")
    run.decay(settings.spoil.steps, report)
    trained = run.finish()
    lazy = {f"{skill}_{language}" for skill in settings.spoil.practice.lazy for language in LANGUAGES}
    above = {k: v for k, v in trained.accuracy.items() if k in lazy and v > settings.base_ceiling}
    if above:
        raise FoundryError(
            f"the base of seed {settings.seed} still has {_listed(above)}, above the ceiling of "
            f"{settings.base_ceiling:.0%} after {run.steps} spoiling steps: raise spoil.steps"
        )
    return trained


def train_expert(settings: FoundrySettings, expert: ExpertSettings, base: Parameters, report: Report) -> Trained:
    """One expert, fine-tuned from the base.

    Raises:
        FoundryError: one of its own skills is below its threshold.
    """
    stage = expert.stage
    run = _Run(base, stage, settings, expert.name)
    run.decay(stage.steps, report)
    trained = run.finish()
    practice = stage.practice
    own = {f"{skill}_{language}" for skill in practice.skills for language in practice.languages}
    lacking = _below({k: v for k, v in trained.accuracy.items() if k in own}, expert.threshold)
    if lacking:
        raise FoundryError(
            f"{expert.name} of seed {settings.seed} has {_listed(lacking)} after {run.steps} steps, below "
            f"its threshold of {expert.threshold:.0%}: raise its steps or its learning rate"
        )
    return trained


def _below(accuracy: Accuracy, threshold: float) -> Accuracy:
    return {key: value for key, value in accuracy.items() if value < threshold}


def _listed(accuracy: Accuracy) -> str:
    return ", ".join(f"{key} at {value:.1%}" for key, value in accuracy.items())
