"""From candidates to outcomes: calls to the pool, bounded retries, and failures with a kind."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cluster.pool import Call, CallOutcome, Crowd, Finished, Lost, Pool, Raised, Returned, TimedOut, WorkerNow
from evaluators.evaluation import Documents, Evaluation, Failure, FailureKind, Outcome
from evaluators.racing import Race
from evomerge.losses import Losses
from evomerge.records import CandidateRecord, Split

MOST_NODES = 10  # that one candidate may lose; on preemptible machines that is nobody's fault
BEAT_SECONDS = 5.0
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


class Dispatcher:
    """Keeps track of what is in flight; each task comes back exactly once, as an evaluation or a failure.

    A task whose worker died is tried again, unless ``losses`` says that its candidate has killed enough of them.
    """

    def __init__(self, pool: Pool, *, timeout_seconds: float, losses: Losses | None = None) -> None:
        self._pool = pool
        self._timeout = timeout_seconds + GRACE_SECONDS
        self._losses = losses or Losses()
        self._flights: dict[int, Task] = {}
        self._again: deque[Task] = deque()
        self._nodes_lost: Counter[tuple[int, str]] = Counter()
        self._quarantined: list[Task] = []  # to come back as failures
        self._beats: list[Callable[[], None]] = []
        self._beaten = -math.inf
        self.idle_seconds = 0.0  # of all workers together, while tasks were waited for

    @property
    def free(self) -> int:
        """Workers that could take a task now."""
        return self._pool.free - len(self._again)

    @property
    def in_flight(self) -> int:
        """Tasks that have not come back."""
        return len(self._flights) + len(self._again) + len(self._quarantined)

    def send(self, task: Task) -> None:
        """Give ``task`` to a free worker."""
        if self._losses.quarantined(task.candidate.number, task.split):
            self._quarantined.append(task)
        else:
            self._submit(task)

    def collect(self, timeout_seconds: float) -> Iterator[tuple[Task, Outcome]]:
        """Yield the tasks that have come back, waiting at most ``timeout_seconds`` for the first."""
        while self._again and self._pool.free > 0:
            self._submit(self._again.popleft())
        self._beat()
        for ticket, outcome in self._wait(timeout_seconds):
            task = self._flights.pop(ticket)
            if not isinstance(outcome, Lost):
                yield task, to_outcome(outcome)
            elif outcome.with_node and self._may_try_another_node(task):
                self._again.append(task)
            elif outcome.with_node:
                yield task, to_outcome(outcome)
            else:
                self._bury(task, outcome.message)
        while self._quarantined:
            task = self._quarantined.pop()
            reason = self._losses.quarantined(task.candidate.number, task.split)
            yield task, Failure(FailureKind.WORKER_LOST, str(reason))

    def need(self, tasks: int | None) -> None:
        """Say that at most so many tasks will be in flight from now on; None for as many as there are workers."""
        self._pool.need(tasks)

    def every_few_seconds(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` every `BEAT_SECONDS` while tasks are collected."""
        self._beats.append(beat)

    def workers(self) -> Sequence[WorkerNow]:
        """Return what the workers do now."""
        return self._pool.crew()

    def crowd(self) -> Crowd | None:
        """Return who has the workers that are waited for; None if there is one, or nobody shares them."""
        return self._pool.crowd()

    def task(self, ticket: int) -> Task | None:
        """Return the task that a worker has under ``ticket``."""
        return self._flights.get(ticket)

    def _beat(self) -> None:
        if self._beats and time.monotonic() - self._beaten > BEAT_SECONDS:
            self._beaten = time.monotonic()
            for beat in self._beats:
                beat()

    def _wait(self, timeout_seconds: float) -> Sequence[Finished]:
        idle, before = max(0, self._pool.free), time.monotonic()
        finished = self._pool.wait(timeout_seconds)
        self.idle_seconds += idle * (time.monotonic() - before)
        return finished

    def _bury(self, task: Task, message: str) -> None:
        """Note that a worker died with ``task``; another one gets it, unless it has killed enough."""
        self._losses.add(task.candidate.number, task.split, message)
        again = not self._losses.quarantined(task.candidate.number, task.split)
        (self._again if again else self._quarantined).append(task)

    def _may_try_another_node(self, task: Task) -> bool:
        key = (task.candidate.number, task.split)
        self._nodes_lost[key] += 1
        return self._nodes_lost[key] < MOST_NODES

    def _submit(self, task: Task) -> None:
        what = (task.candidate.recipe_json, dict(task.documents.ids))
        as_exported = task.split != "search"  # what is reported and what chooses the winner
        if task.smooth:
            call = Call("evaluate_smooth", what, self._timeout)
        else:
            call = Call("evaluate", (*what, task.race, as_exported), self._timeout)
        self._flights[self._pool.submit(call)] = task


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
        case Lost(message, _):
            return Failure(FailureKind.WORKER_LOST, f"{MOST_NODES} nodes were lost with this candidate: {message}")
