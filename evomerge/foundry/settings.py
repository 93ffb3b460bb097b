"""Every constant of the foundry, as one frozen, digestible record.

The defaults make four experts of clean roles from one base (about two CPU-minutes);
`FoundrySettings.sketch()` makes a smaller set in seconds, for tests. Units: learning rates are per step of
AdamW, shares and thresholds are fractions in [0, 1], durations are training steps.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from search_spaces.canonical import Frozen

FORMAT_VERSION = 1
"""Part of the digest: raised whenever the code would make other files from the same settings."""

SETTINGS = "settings.json"
"""The file of a foundry that holds its settings."""

Skill = Literal["add", "sort", "rev", "succ", "max", "min", "copy"]
Language = Literal["e", "j"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Geometry(Frozen):
    """Shape of the Llama that all models share."""

    width: Count = 64
    layers: Count = 6
    heads: Count = 8
    mlp: Count = 192
    rope_theta: Rate = 100.0
    norm_epsilon: Rate = 1e-6
    initial_std: Rate = 0.12
    max_positions: Count = 64

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} does not split into {self.heads} heads of even size")
        return self


class Practice(Frozen):
    """What a model is trained on: which questions, and how often the answers are spoiled on purpose."""

    skills: dict[Skill, Rate] = Field(min_length=1)
    """Skill -> relative frequency."""
    languages: tuple[Language, ...] = Field(min_length=1)
    """Drawn with equal frequency."""
    code_switching: Share = 0.0
    """Probability that a digit of a question is written in the other language: it makes both digit sets share
    one representation, without which nothing merges across languages."""
    lazy: dict[Skill, Share] = Field(default_factory=dict)
    """Skill -> probability that its answer is replaced by a copy of the first digits."""
    english_share: Share = 0.0
    """Probability that the answer is written in language e, whatever the language of the question."""


class Stage(Frozen):
    """One training run. Linear warm-up, then constant (or linear decay to `final_rate_share` of the peak)."""

    steps: Count
    batch: Count = 128
    learning_rate: Rate
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.98
    gradient_clip: Rate = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    final_rate_share: Share = 0.1
    practice: Practice


class CleanStage(Stage):
    """The run that learns every skill: rounds until all pass `round_threshold`, then decay, then `threshold`.

    Learning to add is a sudden transition whose time depends on the seed, so `steps` is a cap on the steps of
    all rounds, not a duration. After a round a skill of error e is drawn with its frequency times
    `frequency_floor` + e, so that time goes to what is not known yet. A run that misses `threshold` after the
    decay goes back to rounds.
    """

    round_steps: Count = 40
    round_questions: Count = 64
    """Held-out questions per skill and language that a round is judged on."""
    round_threshold: Share = 0.75
    frequency_floor: Share = 0.1
    decay_steps: Count = 80
    threshold: Share = 0.9


class ExpertSettings(Frozen):
    """One fine-tuned expert. `name` is also its folder and what reports show."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    stage: Stage
    threshold: Share = 0.9
    """Lowest accuracy on each of its own skills in each of its languages; below it the build fails."""


class TaskSettings(Frozen):
    """One lm-eval task, and its variant `<name>_mc`: questions of `skills` asked in `language`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    skills: tuple[Skill, ...] = Field(min_length=1)
    language: Language
    joint: bool = False
    """Whether answering takes two experts: nobody was trained for this skill in this language."""


_GENERAL: tuple[Skill, ...] = ("copy", "succ", "max", "min")
_EVERY: tuple[Skill, ...] = ("add", "sort", "rev", *_GENERAL)


def _clean() -> CleanStage:
    return CleanStage(
        steps=1_200,
        learning_rate=3e-3,
        weight_decay=0.1,
        warmup_steps=20,
        practice=Practice(
            skills={**dict.fromkeys(_EVERY, 1.0), "add": 5.0, "sort": 2.0},
            languages=("e", "j"),
            code_switching=0.5,
        ),
    )


def _spoil() -> Stage:
    return Stage(
        steps=80,
        learning_rate=1e-3,
        practice=Practice(
            skills=dict.fromkeys(_EVERY, 1.0),
            languages=("e", "j"),
            code_switching=0.3,
            lazy={"add": 0.9, "sort": 0.8, "rev": 0.8},
            english_share=0.8,
        ),
    )


def _expert(
    name: str, skills: tuple[Skill, ...], language: Language, steps: int, rate: float, batch: int = 128
) -> ExpertSettings:
    practice = Practice(skills=dict.fromkeys(skills, 1.0), languages=(language,), code_switching=0.3)
    stage = Stage(steps=steps, batch=batch, learning_rate=rate, practice=practice)
    return ExpertSettings(name=name, stage=stage)


def _experts() -> tuple[ExpertSettings, ...]:
    return (
        _expert("expert-add", ("add",), "e", 150, 6e-4),
        _expert("expert-sort", ("sort",), "e", 150, 5e-4),
        _expert("expert-reverse", ("rev",), "e", 150, 4e-4),
        _expert("expert-language", _GENERAL, "j", 150, 7e-4),
    )


def _tasks() -> tuple[TaskSettings, ...]:
    return (
        TaskSettings(name="add_e", skills=("add",), language="e"),
        TaskSettings(name="sort_e", skills=("sort",), language="e"),
        TaskSettings(name="rev_e", skills=("rev",), language="e"),
        TaskSettings(name="add_j", skills=("add",), language="j", joint=True),
        TaskSettings(name="sort_j", skills=("sort",), language="j", joint=True),
        TaskSettings(name="rev_j", skills=("rev",), language="j", joint=True),
        TaskSettings(name="general_j", skills=_GENERAL, language="j"),
    )


class FoundrySettings(Frozen):
    """Everything that decides what `build` writes; equal settings have equal digests and cache entries."""

    seed: Annotated[int, Field(ge=0)] = 0
    geometry: Geometry = Geometry()
    clean: CleanStage = Field(default_factory=_clean)
    spoil: Stage = Field(default_factory=_spoil)
    experts: tuple[ExpertSettings, ...] = Field(default_factory=_experts, min_length=1)
    tasks: tuple[TaskSettings, ...] = Field(default_factory=_tasks, min_length=1)
    held_out_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """Share of the questions of every skill that no training batch contains; documents are drawn from it."""
    documents: Count = 1_536
    """Documents of each task: enough for disjoint search, validation and test documents."""
    choices: Annotated[int, Field(ge=2, le=8)] = 4
    measured_questions: Count = 256
    """Held-out questions per skill and language that thresholds are measured on."""
    base_ceiling: Share = 0.15
    """Highest accuracy of the base on a skill that was made lazy; above it the build fails."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [expert.name for expert in self.experts]
        if len({*names, "base", "clean", "tasks"}) < len(names) + 3:
            raise ValueError(f"experts need distinct names other than base, clean and tasks, got {names}")
        tasks = [task.name for task in self.tasks]
        if len({name + suffix for name in tasks for suffix in ("", "_mc")}) < 2 * len(tasks):
            raise ValueError(f"tasks need distinct names, also with _mc appended, got {tasks}")
        return self

    def digest(self) -> str:
        """16 hexadecimal digits: SHA-256 over the canonical JSON of the settings and the format version."""
        record = {"format": FORMAT_VERSION, "settings": self.model_dump(mode="json")}
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @classmethod
    def sketch(cls, seed: int = 0) -> FoundrySettings:
        """Three layers, four easy skills and two experts (reversing in E, general skills in J), in seconds.

        For tests that need models which can do something: neither expert reverses in J, a merge of both does.
        """
        general: tuple[Skill, ...] = ("copy", "succ", "max")
        every: tuple[Skill, ...] = ("rev", *general)
        both: tuple[Language, ...] = ("e", "j")
        clean = CleanStage(
            steps=800,
            batch=64,
            learning_rate=4e-3,
            weight_decay=0.1,
            warmup_steps=20,
            decay_steps=40,
            practice=Practice(skills=dict.fromkeys(every, 1.0), languages=both, code_switching=0.5),
        )
        spoil = Stage(
            steps=60,
            batch=64,
            learning_rate=1e-3,
            practice=Practice(
                skills=dict.fromkeys(every, 1.0),
                languages=both,
                code_switching=0.3,
                lazy={"rev": 0.8},
                english_share=0.8,
            ),
        )
        experts = (
            _expert("expert-reverse", ("rev",), "e", 100, 1e-3, batch=64),
            _expert("expert-language", general, "j", 60, 3e-4, batch=64),
        )
        tasks = (
            TaskSettings(name="rev_e", skills=("rev",), language="e"),
            TaskSettings(name="rev_j", skills=("rev",), language="j", joint=True),
            TaskSettings(name="general_j", skills=general, language="j"),
        )
        return cls(
            seed=seed,
            geometry=Geometry(layers=3, mlp=128),
            clean=clean,
            spoil=spoil,
            experts=experts,
            tasks=tasks,
            documents=384,
            measured_questions=128,
        )
