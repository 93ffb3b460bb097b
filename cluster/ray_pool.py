"""The pool on Ray: one long-lived actor per worker, and a driver loop on `ray.wait`.

- An actor gets its first call when its worker is ready, so a call's clock never counts imports. A call that finds no
  worker ready (they are starting, or a node is gone) waits in the pool and goes to the first that is.
- An actor that dies loses at most the call it had; it is replaced. A line of replacements that die one after another
  before they finish a call is given up, and when no line is left the pool has failed.
- A factory that raises before any worker was ever ready ends the pool at once: it would raise everywhere.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.calls import factory_failed, raised
from cluster.pool import (
    Call,
    CallOutcome,
    Finished,
    Lost,
    Raised,
    TimedOut,
    WorkerFactory,
    WorkersFailed,
)
from cluster.ray_session import RaySession
from cluster.ray_worker import WorkerHost

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Actor:
    """One actor.

    Attributes:
        handle: Ray's handle.
        deaths: how many of its predecessors died one after another before they finished a call.
        ready: its worker has been made.
        proven: it has finished a call.
    """

    handle: Any
    deaths: int
    ready: bool = False
    proven: bool = False


@dataclass(frozen=True)
class _Waiting:
    """A call without a worker; ``payload`` is the pickled method and arguments."""

    ticket: int
    payload: bytes
    timeout_seconds: float | None


@dataclass(frozen=True)
class _Running:
    """A call that an actor has; ``deadline`` is monotonic time in seconds."""

    ticket: int
    actor: _Actor
    timeout_seconds: float | None
    deadline: float


class RayPool:
    """Workers in processes of their own, on this machine or on a cluster; see the module's text.

    The pool joins the session that is open in this process, or opens one for itself (see `RaySession`).

    Args:
        factory: makes a worker, in the worker's process; anything that cloudpickle can pickle.
        workers: how many; ``"auto"`` for as many as fit on the cluster's nodes.
        cpus_per_worker: CPUs that each reserves; its numerical libraries use as many threads (at least one).
        gpus_per_worker: GPUs that each reserves and sees; may be a fraction.
        address: the cluster; see `RaySession`.
        max_restarts: how often in a row a worker that dies before it finishes a call is replaced.
        worker_output: show what workers print in the driver's terminal.

    Raises:
        ValueError: an argument is out of range, the factory cannot be pickled, or no node has room for a worker.
        ConnectionError: there is no cluster at ``address``.
    """

    def __init__(
        self,
        factory: WorkerFactory,
        *,
        workers: int | Literal["auto"] = "auto",
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float = 0.0,
        address: str | None = None,
        max_restarts: int = 3,
        worker_output: bool = False,
    ) -> None:
        _check_needs(workers, cpus_per_worker, gpus_per_worker, max_restarts)
        self._max_restarts = max_restarts
        self._starting: dict[Any, _Actor] = {}  # by the reference of the call that makes the worker
        self._idle: list[_Actor] = []
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[Any, _Running] = {}  # by the reference of the result
        self._tickets = itertools.count()
        self._failure: WorkersFailed | None = None
        self._any_ready = False
        self._closed = False
        cpus = None if workers == "auto" else max(1, math.ceil(workers * cpus_per_worker))
        self._session = RaySession(address, cpus=cpus, worker_output=worker_output)
        try:
            self._ray = self._session.ray
            self._workers = _resolve(workers, self._session, cpus_per_worker, gpus_per_worker)
            self._factory = self._pickled("factory", factory)
            self._actor_class = self._ray.remote(WorkerHost).options(
                num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, max_restarts=0, max_task_retries=0
            )
            self._threads = max(1, int(cpus_per_worker))
            for _ in range(self._workers):
                self._start_actor(deaths=0)
        except BaseException:
            self._session.close()
            raise
        self._lines = self._workers

    @property
    def workers(self) -> int:
        """Number of workers."""
        return self._workers

    @property
    def free(self) -> int:
        """Number of workers without a call; those that were given up after ``max_restarts`` do not count."""
        return max(0, self._lines - len(self._running) - len(self._waiting))

    def submit(self, call: Call) -> int:
        """Give ``call`` to a free worker and return its ticket (0, 1, 2, ... in order).

        Raises:
            RuntimeError: no worker is free, or the pool is closed.
            WorkersFailed: no worker is left.
            ValueError: the arguments cannot be pickled.
        """
        if self._closed:
            raise RuntimeError("submit: the pool is closed; make a new one")
        if self._failure is not None:
            raise self._failure
        if not self.free:
            raise RuntimeError(f"submit: all {self._workers} workers are busy; call wait() first")
        payload = self._pickled(f"arguments of {call.method}", (call.method, call.arguments))
        ticket = next(self._tickets)
        self._waiting.append(_Waiting(ticket, payload, call.timeout_seconds))
        self._dispatch()
        return ticket

    def wait(self, timeout_seconds: float | None = None) -> Sequence[Finished]:
        """Return the calls that have come back, waiting for at least one; empty after the time-out or with none out.

        Raises:
            WorkersFailed: the factory raises, or every worker has been given up.
        """
        give_up = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        finished: list[Finished] = []
        while (self._running or self._waiting) and not finished and self._failure is None:
            self._receive(finished, until=min(give_up, self._next_deadline()))
            self._expire(finished)
            self._dispatch()
            if time.monotonic() >= give_up:
                break
        if self._failure is not None and not finished:
            raise self._failure
        return finished

    def close(self) -> None:
        """Kill every worker, and end the Ray session if this pool opened it. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for actor in (*self._starting.values(), *self._idle, *(run.actor for run in self._running.values())):
            self._ray.kill(actor.handle)
        self._starting.clear()
        self._idle.clear()
        self._running.clear()
        self._waiting.clear()
        self._session.close()

    def _start_actor(self, *, deaths: int) -> None:
        handle = self._actor_class.remote(self._threads)
        self._starting[handle.start.remote(self._factory)] = _Actor(handle, deaths)

    def _dispatch(self) -> None:
        """Give waiting calls to idle workers; the last to finish first, its memory is warm."""
        while self._waiting and self._idle:
            call, actor = self._waiting.popleft(), self._idle.pop()
            seconds = math.inf if call.timeout_seconds is None else call.timeout_seconds
            run = _Running(call.ticket, actor, call.timeout_seconds, time.monotonic() + seconds)
            self._running[actor.handle.run.remote(call.payload)] = run

    def _receive(self, finished: list[Finished], *, until: float) -> None:
        """Wait, at the latest ``until`` (monotonic seconds), for one call or one worker to be ready."""
        timeout = None if until == math.inf else max(0.0, until - time.monotonic())
        ready, _ = self._ray.wait([*self._running, *self._starting], num_returns=1, timeout=timeout)
        for reference in ready:
            self._settle(reference, finished)

    def _settle(self, reference: Any, finished: list[Finished]) -> None:
        if reference in self._starting:
            self._started(self._starting.pop(reference), reference)
            return
        run = self._running.pop(reference)
        outcome = self._outcome(reference)
        finished.append(Finished(run.ticket, outcome))
        if isinstance(outcome, Lost):
            self._died(run.actor, outcome.message)
        else:
            run.actor.proven = True
            self._idle.append(run.actor)

    def _started(self, actor: _Actor, reference: Any) -> None:
        try:
            problem: Raised | None = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._died(actor, str(error))
            return
        if problem is None:
            actor.ready = self._any_ready = True
            self._idle.append(actor)
        elif not self._any_ready:
            self._failure = factory_failed(problem)
        else:
            self._ray.kill(actor.handle)
            self._died(actor, str(factory_failed(problem)))

    def _outcome(self, reference: Any) -> CallOutcome:
        exceptions = self._ray.exceptions
        try:
            payload: bytes = self._ray.get(reference)
        except exceptions.RayError as error:
            return Lost(str(error))
        try:
            outcome: CallOutcome = self._ray.cloudpickle.loads(payload)
        except Exception as error:  # a class that only the worker's machine has
            return raised(error)
        return outcome

    def _died(self, actor: _Actor, message: str) -> None:
        """Replace ``actor``, unless too many before it have died without finishing a call."""
        deaths = 0 if actor.proven else actor.deaths + 1
        if deaths <= self._max_restarts:
            logger.warning("a worker died and is replaced: %s", message)
            self._start_actor(deaths=deaths)
            return
        self._lines -= 1
        logger.error("a worker died %d times in a row before it finished a call and is given up", deaths)
        if not self._lines:
            self._failure = WorkersFailed(
                f"no worker is left: each died {deaths} times in a row before it finished a call; the last: {message}"
            )

    def _next_deadline(self) -> float:
        return min((run.deadline for run in self._running.values()), default=math.inf)

    def _expire(self, finished: list[Finished]) -> None:
        """Kill and replace the workers whose calls are past their time-out."""
        now = time.monotonic()
        late = [reference for reference, run in self._running.items() if run.deadline <= now]
        if not late:
            return
        in_time, _ = self._ray.wait(late, num_returns=len(late), timeout=0)  # came back while nobody looked
        for reference in in_time:
            self._settle(reference, finished)
        for reference in set(late).difference(in_time):
            run = self._running.pop(reference)
            self._ray.kill(run.actor.handle)
            self._start_actor(deaths=0 if run.actor.proven else run.actor.deaths)
            finished.append(Finished(run.ticket, TimedOut(run.timeout_seconds or 0.0)))

    def _pickled(self, name: str, value: Any) -> bytes:
        try:
            pickled: bytes = self._ray.cloudpickle.dumps(value)
        except Exception as error:
            raise ValueError(
                f"{name}: expected something that can be pickled, got {type(error).__name__}: {error}"
            ) from error
        return pickled


def _check_needs(workers: int | str, cpus: float, gpus: float, max_restarts: int) -> None:
    if workers != "auto" and (not isinstance(workers, int) or workers < 1):
        raise ValueError(f"workers: expected 'auto' or at least 1, got {workers!r}")
    if cpus < 0 or gpus < 0 or cpus + gpus == 0:
        raise ValueError(
            f"cpus_per_worker, gpus_per_worker: expected at least 0 and one of them above, got {cpus} and {gpus}"
        )
    if max_restarts < 0:
        raise ValueError(f"max_restarts: expected at least 0, got {max_restarts}")


def _resolve(workers: int | Literal["auto"], session: RaySession, cpus: float, gpus: float) -> int:
    """Return the number of workers to start; says so when they will not all run at once."""
    room = session.capacity(cpus=cpus, gpus=gpus)
    if not room:
        raise ValueError(
            f"cpus_per_worker, gpus_per_worker: no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for a worker; "
            "ask for less, or start a node that has them"
        )
    if workers == "auto":
        return room
    if workers > room:
        logger.warning("the cluster has room for %d of %d workers; the others start when there is more", room, workers)
    return workers
