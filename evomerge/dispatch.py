"""From candidates to outcomes: calls to the pool, bounded retries, and failures with a kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cluster.pool import Call, CallOutcome, Lost, Pool, Raised, Returned, TimedOut
from evaluators.evaluation import Documents, Evaluation, Failure, FailureKind, Outcome
from evaluators.racing import Race
from evomerge.records import CandidateRecord, Split

ATTEMPTS = 3  # a worker that dies may have died of something else than its candidate
GRACE_SECONDS = 60.0  # the evaluator stops itself at its time-out; the pool steps in when it cannot


class Task(NamedTuple):
    """One candidate to be measured on documents of one split.

    In full unless it has a `race` to run; by the objectives unless by `smooth` scores.
    """

    candidate: CandidateRecord
    split: Split
    documents: Documents
    race: Race | None = None
    smooth: bool = False


@dataclass(frozen=True)
class _Flight:
    task: Task
    attempt: int


class Dispatcher:
    """Keeps track of what is in flight; each task comes back exactly once, as an evaluation or a failure."""

    def __init__(self, pool: Pool, *, timeout_seconds: float) -> None:
        self._pool = pool
        self._timeout = timeout_seconds + GRACE_SECONDS
        self._flights: dict[int, _Flight] = {}
        self._again: list[_Flight] = []

    @property
    def free(self) -> int:
        """Workers that could take a task now."""
        return self._pool.free - len(self._again)

    @property
    def in_flight(self) -> int:
        """Tasks that have not come back."""
        return len(self._flights) + len(self._again)

    def send(self, task: Task) -> None:
        """Give ``task`` to a free worker."""
        self._submit(_Flight(task, attempt=1))

    def collect(self, timeout_seconds: float) -> Iterator[tuple[Task, Outcome]]:
        """Yield the tasks that have come back, waiting at most ``timeout_seconds`` for the first."""
        while self._again and self._pool.free:
            self._submit(self._again.pop(0))
        for ticket, outcome in self._pool.wait(timeout_seconds):
            flight = self._flights.pop(ticket)
            if isinstance(outcome, Lost) and flight.attempt < ATTEMPTS:
                self._again.append(_Flight(flight.task, flight.attempt + 1))
                continue
            yield flight.task, to_outcome(outcome)

    def _submit(self, flight: _Flight) -> None:
        task = flight.task
        what = (task.candidate.recipe_json, dict(task.documents.ids))
        as_exported = task.split != "search"  # what is reported and what chooses the winner
        if task.smooth:
            call = Call("evaluate_smooth", what, self._timeout)
        else:
            call = Call("evaluate", (*what, task.race, as_exported), self._timeout)
        self._flights[self._pool.submit(call)] = flight


def to_outcome(outcome: CallOutcome) -> Outcome:
    """Return the evaluation that a call brought back, or what kept it from doing so."""
    match outcome:
        case Returned(value) if isinstance(value, Evaluation | Failure):
            return value
        case Returned(value):
            return Failure(FailureKind.EXCEPTION, f"the worker returned a {type(value).__name__}, not an evaluation")
        case Raised(kind, message, _):
            return Failure(FailureKind.EXCEPTION, f"{kind}: {message}")
        case TimedOut(seconds):
            return Failure(FailureKind.TIMED_OUT, f"no answer within {seconds:.0f} s; the worker was stopped")
        case Lost(message):
            return Failure(FailureKind.WORKER_LOST, f"the worker died {ATTEMPTS} times with this candidate: {message}")
