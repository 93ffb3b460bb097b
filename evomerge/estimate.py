"""`evomerge check`: every check before a run, and what the run will need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from evaluators.evaluation import Evaluation, Failure
from evomerge.calibration import undecided
from evomerge.config import SearchFile
from evomerge.errors import BadSearch
from evomerge.inspection import Inspection
from evomerge.minibatches import with_generations
from evomerge.optimizers.choice import resolve
from evomerge.optimizers.registry import make_optimizer
from evomerge.problem import Problem, Progress, prepare
from evomerge.racing import refuse_unraceable
from evomerge.runner import Machine, find_machine, worker_bytes
from search_spaces.seeds import base_recipe


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
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return asdict(self) | {"inspection": self.inspection.to_json()}

    def lines(self) -> list[str]:
        """Return it in words."""
        documents = ", ".join(f"{count} {split}" for split, count in self.documents.items())
        mebibyte = 2**20
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
            f"time       {self.seconds_per_evaluation:.2f} s and {self.tokens_per_evaluation} tokens an evaluation "
            f"(the base, measured now), about {self.seconds_of_search / 60:.0f} min "
            f"for {self.evaluations} evaluations",
        ]


def estimate(file: SearchFile, *, say: Callable[[str], None], progress: Progress | None = None) -> CheckReport:
    """Check ``file`` as `run` does, measure the base once on search documents, and extrapolate.

    Raises:
        UserMistake, TaskError: what is wrong.
    """
    problem = prepare(file, say=say, progress=progress)
    if file.evaluation.racing or file.evaluation.minibatches:
        settings = resolve(file.optimizer, problem.choice())
        suits = refuse_unraceable if file.evaluation.racing else with_generations
        suits(make_optimizer(settings, problem.setting()), settings.kind)
    machine = find_machine(file.cluster, problem)
    say("measuring the base once")
    worker = problem.worker_spec(device=machine.device, threads=machine.threads)()
    recipe = base_recipe(problem.space).to_json()
    worker.evaluate(recipe, problem.splits.search.ids)  # the first one also plans batches
    outcome = worker.evaluate(recipe, problem.splits.search.ids)
    if isinstance(outcome, Failure):
        raise BadSearch(f"the base cannot be measured: {outcome.kind.value}: {outcome.message}")
    return _report(problem, outcome, machine)


def _report(problem: Problem, measured: Evaluation, machine: Machine) -> CheckReport:
    evaluations = problem.file.budget.evaluations
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
        worker_bytes=worker_bytes(problem),
        workers=machine.workers,
        device=machine.device,
        seconds_per_evaluation=measured.cost.seconds,
        tokens_per_evaluation=measured.cost.tokens,
        evaluations=evaluations,
        seconds_of_search=measured.cost.seconds * evaluations / machine.workers,
        truncated=dict(measured.truncated),
        inspection=problem.inspection,
        over_limits=dict(measured.over_limits),
        vocabulary=problem.vocabulary_notes,
        warnings=(*problem.inspection.warnings, *undecided(problem.file, problem.splits.search.ids)),
    )
