"""Computing the statistics that a recipe needs: its sources are run on the calibration prompts, each once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from evomerge.atomic import alone
from evomerge.merging import gradients, layer_inputs
from evomerge.merging.calibrations import recall
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.exhibit import Exhibit
from evomerge.merging.placement import Devices, gpu_names
from evomerge.merging.prepared import in_the_cache
from evomerge.merging.sources import cache_folder
from evomerge.merging.statistics import Need, Recorder, Statistic, Statistical, needs
from search_spaces.calibration import Calibration, Sample
from search_spaces.recipe import Recipe

Progress = Callable[[int, int], None]  # runs of a prompt: done, all


def statistical_operators(recipe: Recipe) -> list[Statistical]:
    """Return the operators of ``recipe`` that need statistics, those that differ in nothing but weights once."""
    found: dict[str, Statistical] = {}
    for operator in recipe.operators:
        if isinstance(operator, Statistical):
            found.setdefault(str(operator.model_dump(exclude={"weights", "scale"})), operator)
    return list(found.values())


def any_missing(recipe: Recipe) -> bool:
    """Whether statistics that ``recipe`` needs are not in the cache.

    Raises:
        BadRecipe: the calibration prompts are not here, or for other experts.
    """
    wanted = (needs(each, recipe, recall(each.prompts)) for each in statistical_operators(recipe))
    return not all(need.complete() for own in wanted for need in own)


def ensure(
    recipe: Recipe,
    checkpoints: Sequence[Checkpoint],
    *,
    device: Devices = "cpu",
    progress: Progress | None = None,
) -> None:
    """Compute the statistics that ``recipe`` needs and that are not in the cache; one process of a machine at a time.

    The sources are run on ``device``, or each spread over several.
    Beside one model it takes 4 bytes of memory a parameter for Fisher information, 6 for votes, and for Gram matrices
    half of what is free, or less.

    Raises:
        BadRecipe: the calibration prompts are not here, or for other experts or another vocabulary.
        BadSource: a model gives values that are not finite.
        NotEnoughRoom: memory or disk does not suffice.
    """
    for operator in statistical_operators(recipe):
        calibration = recall(operator.prompts)
        if all(need.complete() for need in needs(operator, recipe, calibration)):
            continue
        lock = cache_folder() / "statistics.lock"
        with in_the_cache(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            with alone(lock):
                _Observation(operator, recipe, calibration, checkpoints, device).run(progress)


@dataclass(frozen=True)
class _Observation:
    operator: Statistical
    recipe: Recipe
    calibration: Calibration
    checkpoints: Sequence[Checkpoint]
    device: Devices

    def run(self, progress: Progress | None) -> None:
        wanted = needs(self.operator, self.recipe, self.calibration)
        missing = [need for need in wanted if not need.complete()]
        if not missing:
            return
        exhibit = Exhibit(self.recipe, self.checkpoints, device=self.device)
        exhibit.check_vocabulary(self.calibration)
        counter = _Counter(self._runs(exhibit, missing), progress)
        step = counter.step
        if missing[0].kind == "merged_inputs":
            layer_inputs.merged_inputs(
                exhibit,
                {need.source: self._samples(need) for need in wanted},
                {need.source: Recorder(need) for need in wanted},
                step,
                off_diagonal=self.operator.off_diagonal,  # type: ignore[union-attr]
            )
        else:
            for need in missing:
                self._observe(need, wanted[0], exhibit, step)
        counter.finish()

    def _observe(self, need: Need, first: Need, exhibit: Exhibit, step: Callable[[], None]) -> None:
        samples, recorder = self._samples(need), Recorder(need)
        if need.kind == "fisher":
            gradients.fisher(exhibit, need.source, samples, recorder, step)
        elif need.kind == "inputs":
            layer_inputs.inputs(exhibit, need.source, samples, recorder, step)
        else:
            kept = first.source, Statistic.read(first)
            protection: float = self.operator.protection  # type: ignore[union-attr]
            gradients.votes(exhibit, need.source, samples, recorder, step, kept=kept, protection=protection)

    def _samples(self, need: Need) -> tuple[Sample, ...]:
        return self.calibration.of_expert(self.recipe.experts.index(need.source))

    def _runs(self, exhibit: Exhibit, missing: Sequence[Need]) -> int:
        runs = sum(len(self._samples(need)) for need in missing)
        if missing[0].kind == "merged_inputs":
            return runs * self.checkpoints[0].layers
        return runs * layer_inputs.passes(exhibit) if missing[0].kind == "inputs" else runs


class _Counter:
    """Tells of the runs that are done."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._done = total, progress, 0

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)

    def finish(self) -> None:
        """All are done, even if fewer were needed than it seemed."""
        if self._progress is not None:
            self._progress(self._total, self._total)


def default_device(gpus: float | None = None) -> Devices:
    """Return where models are run if nobody says; ``gpus`` of them share a model where there are that many."""
    if gpus is not None and 1.0 < gpus <= torch.cuda.device_count():
        return gpu_names(gpus)
    return "cuda" if torch.cuda.is_available() else "cpu"
