"""The worker: keeps the sources resident, applies a recipe in memory, evaluates. A plain class; pools wrap it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from evaluators.evaluation import Documents, Evaluation, Failure, FailureKind, Outcome
from evaluators.objective import EvaluationSettings, Objective
from evaluators.objective_kinds import AnyObjective
from evaluators.racing import Race
from evomerge import plugins  # noqa: F401  recipes may name operators of other packages
from evomerge.errors import CandidateFailed
from evomerge.merging.placement import Devices, Placement
from search_spaces.calibration import Calibration
from search_spaces.recipe import Dtype, Recipe, Source
from search_spaces.vocabulary import Vocabulary


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs to make itself, on whatever machine; calling it does.

    Attributes:
        folders: one per source of every recipe, in the recipes' order.
        tokenizer: position of the source that gives tokenizer and config.
        base: position of the source that objectives relative to a base mean; None if there is none.
        sources: what the folders hold, for workers on machines that do not have them.
        device: where the model lies, or several devices that it is spread over.
        threads: CPU threads for tensor work.
        calibration: prompts of operators that need statistics, for machines that do not have them.
        vocabulary: the one that the sources are brought to.
        examples: recipes that need, between them, what those of the search compute once on a machine or in a process;
            the last is like them. A worker is ready when it has that, so no candidate's time-out has to cover it.
    """

    folders: tuple[str, ...]
    tokenizer: int
    dtype: Dtype
    objectives: tuple[AnyObjective, ...]
    evaluation: EvaluationSettings
    device: Devices = "cpu"
    threads: int = 1
    base: int | None = 0
    sources: tuple[Source, ...] = ()
    calibration: Calibration | None = None
    vocabulary: Vocabulary | None = None
    examples: tuple[str, ...] = ()

    def local_folders(self) -> tuple[Path, ...]:
        """Return the folders of the sources on this machine; Hub ids and URLs are copied here if need be.

        Raises:
            BadSource: a source cannot be had here, or differs from what the search began with.
        """
        from evomerge.merging.sources import on_this_node

        if not self.sources:
            return tuple(map(Path, self.folders))
        return tuple(map(on_this_node, self.sources, self.folders))

    def __call__(self) -> Worker:
        """Return a new worker."""
        return Worker(self)


class Worker:
    """One resident model and the tasks that measure it."""

    def __init__(self, spec: WorkerSpec) -> None:
        import torch
        from transformers import AutoTokenizer

        from evaluators.blockwise import BlockwiseEvaluator
        from evaluators.context import context_length
        from evaluators.evaluator import LmEvalEvaluator
        from evaluators.smooth import SmoothEvaluator, stand_ins
        from evaluators.tasks import TaskSuite
        from evomerge.base_scores import Base, BaseScores
        from evomerge.merging.aligned import tokenizer_folder
        from evomerge.merging.calibrations import keep
        from evomerge.merging.opening import open_sources
        from evomerge.merging.resident import ResidentModel
        from evomerge.merging.sources import cache_folder

        torch.set_num_threads(spec.threads)
        folders = spec.local_folders()
        if spec.calibration is not None:
            keep(spec.calibration)
        checkpoints = open_sources(folders, spec.base, vocabulary=spec.vocabulary, keep=True)
        self._checkpoints, self._device = checkpoints, spec.device
        self._resident = ResidentModel(checkpoints, tokenizer=spec.tokenizer, dtype=spec.dtype, device=spec.device)
        home = tokenizer_folder(checkpoints[spec.tokenizer])
        tokenizer = AutoTokenizer.from_pretrained(home, trust_remote_code=False)
        suite = TaskSuite.load(spec.objectives, spec.evaluation)
        length = context_length(self._resident.model.config, tokenizer)

        def evaluator_of(suite: TaskSuite) -> LmEvalEvaluator:
            cache = cache_folder() / "requests"
            return LmEvalEvaluator(suite, tokenizer, settings=spec.evaluation, max_length=length, cache=cache)

        self._evaluator = evaluator_of(suite)
        base = None if spec.base is None else Base(spec.base, checkpoints)
        self._base_scores = BaseScores(spec.objectives, base, self._resident, self._measure)
        metrics = tuple(objective for objective in spec.objectives if isinstance(objective, Objective))
        self._smooth = None
        if (minibatches := spec.evaluation.minibatches) and minibatches.measure != "metric":
            others = stand_ins(metrics, minibatches)
            smooth = evaluator_of(TaskSuite.load(tuple(dict.fromkeys(others.values())), spec.evaluation))
            self._smooth = SmoothEvaluator(smooth, {name: other.name for name, other in others.items()})
        timeout = spec.evaluation.timeout_seconds
        self._blockwise = BlockwiseEvaluator(self._evaluator, metrics, timeout_seconds=timeout)
        self._warm_up([Recipe.model_validate_json(example) for example in spec.examples])

    def evaluate(
        self, recipe_json: str, ids: Mapping[str, tuple[int, ...]], race: Race | None = None, as_exported: bool = False
    ) -> Outcome:
        """Merge ``recipe_json`` into the resident model and measure it on the documents ``ids`` of each task.

        With a ``race`` it may see only some of them. A merge is always what export writes; a path, whose scales are
        applied to the residual stream, is so only ``as_exported``, with the scales folded into the weights.
        """
        recipe, documents = Recipe.model_validate_json(recipe_json), Documents(dict(ids))
        if race is not None:
            return self._measure(recipe, documents, race)
        if failure := self._base_scores.prepare(recipe, documents):
            return failure
        outcome = self._measure(recipe, documents, as_exported=as_exported)
        return self._base_scores.complete(outcome, documents) if isinstance(outcome, Evaluation) else outcome

    @property
    def placements(self) -> tuple[Placement, ...]:
        """What lies where, of each copy of the model's weights that is spread over several devices."""
        return tuple(self._resident.placements)

    def evaluate_smooth(self, recipe_json: str, ids: Mapping[str, tuple[int, ...]]) -> Outcome:
        """Return the smooth scores of the merge of ``recipe_json`` under the objectives' names, as `evaluate` does."""
        return self._measure(Recipe.model_validate_json(recipe_json), Documents(dict(ids)), smooth=True)

    def _measure(
        self,
        recipe: Recipe,
        documents: Documents,
        race: Race | None = None,
        *,
        as_exported: bool = False,
        smooth: bool = False,
    ) -> Outcome:
        started, cpu = time.perf_counter(), time.process_time()
        self._observe(recipe)
        try:
            model = self._resident.apply(recipe, folded=as_exported)
        except CandidateFailed as error:
            return Failure(FailureKind.MERGE_ERROR, str(error))
        merged = time.perf_counter() - started
        if smooth:
            assert self._smooth is not None  # the search file asked for it
            outcome = self._smooth.evaluate(model, documents)
        elif race is None:
            outcome = self._evaluator.evaluate(model, documents)
        else:
            with self._evaluator.same_model():
                outcome = self._blockwise.evaluate(model, documents, race)
        return replace(
            outcome,
            cost=replace(
                outcome.cost,
                merge_seconds=merged,
                seconds=time.perf_counter() - started,
                cpu_seconds=time.process_time() - cpu,
            ),
        )

    def _warm_up(self, examples: Sequence[Recipe]) -> None:
        """Compute now what the first candidate would have to: statistics, shared vectors, compiled kernels."""
        for recipe in examples:
            self._observe(recipe)
        with suppress(CandidateFailed):  # what that says of a candidate, the candidates will say
            if examples:
                self._resident.apply(examples[-1])

    def _observe(self, recipe: Recipe) -> None:
        """Compute the statistics that the recipe needs, if this machine does not have them."""
        from evomerge.merging.calibrations import named_in

        if named_in(recipe):
            from evomerge.merging.observation import ensure

            ensure(recipe, self._checkpoints, device=self._device)
