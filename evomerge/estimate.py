"""`evomerge check`: every check before a run, and what the run will need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from evaluators.evaluation import Documents, Evaluation, Failure, Outcome
from evomerge.calibration import undecided
from evomerge.config import SearchFile
from evomerge.errors import BadSearch
from evomerge.inspection import Inspection
from evomerge.merging.placement import Placement
from evomerge.minibatches import minibatches, share_in_full
from evomerge.optimizers.choice import resolve
from evomerge.optimizers.registry import make_optimizer
from evomerge.problem import Problem, Progress, prepare
from evomerge.racing import refuse_unraceable
from evomerge.runner import Machine, find_machine, worker_bytes
from search_spaces.seeds import base_recipe, seeds


@dataclass(frozen=True)
class CheckReport:
    """What was found. Sizes in bytes, times in seconds."""

    name: str
    genes: int
    space: str
    optimizer: str
    optimizer_reason: str
    sources: tuple[str, ...]
    documents: dict[str, int]
    model_bytes: int
    worker_bytes: int
    workers: int
    device: str
    seconds_per_evaluation: float
    tokens_per_evaluation: int
    evaluations: int
    seconds_of_search: float
    truncated: dict[str, int]
    inspection: Inspection
    over_limits: dict[str, int]
    vocabulary: tuple[str, ...] = ()
    seconds_per_minibatch: float | None = None
    racing: bool = False  # then nobody knows how much candidates will see, and `seconds_of_search` is an upper bound
    warnings: tuple[str, ...] = ()
    placements: tuple[Placement, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return asdict(self) | {"inspection": self.inspection.to_json()}

    def lines(self) -> list[str]:
        """Return it in words."""
        documents = ", ".join(f"{count} {split}" for split, count in self.documents.items())
        mebibyte = 2**20
        part = self.seconds_per_minibatch
        minibatch = "" if part is None else f", {part:.2f} s on a minibatch"
        known = "at most about" if self.racing else "about"
        cut = ", ".join(f"{count} of {task}" for task, count in self.truncated.items())
        over = ", ".join(f"{count} of {task}" for task, count in self.over_limits.items())
        return [
            f"search     {self.name}: everything is in order",
            f"sources    {', '.join(self.sources)}",
            f"embeddings {'tied: they are the head, too' if self.inspection.tied else 'apart from the head'}",
            *(f"vocabulary {note}" for note in self.vocabulary),
            f"space      {self.space}",
            f"optimizer  {self.optimizer}: {self.optimizer_reason}",
            f"documents  {documents}",
            *(
                [f"truncated  {cut}: search documents longer than the model's context lose their beginning"]
                if cut
                else []
            ),
            *([f"limits     {over}: the base's code for them ran out of its limits and scored 0"] if over else []),
            f"memory     model {self.model_bytes / mebibyte:.0f} MiB, at most {self.worker_bytes / mebibyte:.0f} MiB "
            f"private per worker above its imports, {self.workers} workers on {self.device}",
            *(f"spread     {line}" for placement in self.placements for line in placement.lines()),
            f"time       {self.seconds_per_evaluation:.2f} s and {self.tokens_per_evaluation} tokens an evaluation "
            f"(the base, measured now){minibatch}, {known} {self.seconds_of_search / 60:.0f} min "
            f"for {self.evaluations} evaluations",
        ]


def estimate(file: SearchFile, *, say: Callable[[str], None], progress: Progress | None = None) -> CheckReport:
    """Check ``file`` as `run` does, measure the base once on search documents, and extrapolate.

    Raises:
        UserMistake, TaskError: what is wrong.
    """
    problem = prepare(file, say=say, progress=progress)
    share = _share_in_full(problem)
    machine = find_machine(file.cluster, problem)
    _refuse_without_gpus(machine)
    say("measuring the base once")
    worker = problem.worker_spec(device=machine.device, threads=machine.threads)()
    full = _measured(worker.evaluate, problem, problem.splits.search)
    part = None
    if settings := file.evaluation.minibatches:
        measure = worker.evaluate if settings.measure == "metric" else worker.evaluate_smooth
        part = _measured(measure, problem, minibatches(problem.splits.search, settings)[0])
    report = _report(problem, machine, full, part, share)
    return replace(report, placements=worker.placements)


def _refuse_without_gpus(machine: Machine) -> None:
    """Refuse to measure here what needs GPUs that only other nodes of the cluster have.

    Raises:
        BadSearch: so it is.
    """
    import torch

    needed = 0 if machine.device == "cpu" else max(1, int(machine.gpus))
    if needed > (here := torch.cuda.device_count()):
        raise BadSearch(
            f"check measures the base with the {needed} GPUs of a worker, and this machine has {here}: run it on a "
            "node of the cluster that has them"
        )


def _share_in_full(problem: Problem) -> float:
    """Return which share of the optimizer's points is measured on all documents.

    Raises:
        BadSearch: the optimizer does not suit the way in which candidates are measured.
    """
    file = problem.file
    if not (file.evaluation.racing or file.evaluation.minibatches):
        return 1.0
    settings = resolve(file.optimizer, problem.choice())
    optimizer = make_optimizer(settings, problem.setting())
    if file.evaluation.racing:
        refuse_unraceable(optimizer, settings.kind)
        return 1.0  # nobody knows which races will be lost
    points = file.budget.evaluations - _seeds(problem)
    return share_in_full(optimizer, settings.kind, objectives=len(file.objectives), points=points)


def _seeds(problem: Problem) -> int:
    return sum(1 for _ in seeds(problem.space))


def _measured(evaluate: Callable[..., Outcome], problem: Problem, documents: Documents) -> Evaluation:
    recipe = base_recipe(problem.space).to_json()
    evaluate(recipe, documents.ids)  # the first one also plans batches
    outcome = evaluate(recipe, documents.ids)
    if isinstance(outcome, Failure):
        raise BadSearch(f"the base cannot be measured: {outcome.kind.value}: {outcome.message}")
    return outcome


def _report(
    problem: Problem, machine: Machine, measured: Evaluation, part: Evaluation | None = None, share: float = 1.0
) -> CheckReport:
    """``part``: of the base on a minibatch, if there are any; all but a ``share`` of the points are measured so."""
    evaluations = problem.file.budget.evaluations
    seconds = measured.cost.seconds * evaluations
    if part is not None:
        saved = (1.0 - share) * max(0, evaluations - _seeds(problem))
        seconds -= saved * (measured.cost.seconds - part.cost.seconds)
    choice = problem.choice()
    splits = ("search", "validation", "test")
    return CheckReport(
        name=problem.file.name,
        genes=len(problem.space.genes),
        space=problem.space.in_words,
        optimizer=choice.kind if choice else problem.file.optimizer.kind,
        optimizer_reason=choice.reason if choice else "the search file says so.",
        sources=tuple(source.path for source in problem.space.sources),
        documents={split: problem.documents(split).count for split in splits},
        model_bytes=problem.model_bytes,
        worker_bytes=worker_bytes(problem, machine),
        workers=machine.workers,
        device=machine.device if isinstance(machine.device, str) else f"{len(machine.device)} GPUs each",
        seconds_per_evaluation=measured.cost.seconds,
        tokens_per_evaluation=measured.cost.tokens,
        evaluations=evaluations,
        seconds_of_search=seconds / machine.workers,
        truncated=dict(measured.truncated),
        inspection=problem.inspection,
        over_limits=dict(measured.over_limits),
        vocabulary=problem.vocabulary_notes,
        seconds_per_minibatch=part.cost.seconds if part else None,
        racing=problem.file.evaluation.racing is not None,
        warnings=(*problem.inspection.warnings, *undecided(problem.file, problem.splits.search.ids)),
    )
