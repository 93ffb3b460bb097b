"""The pool on Ray: one long-lived actor per worker, and a driver loop on `ray.wait`.

An actor gets its first call when its worker is ready, so a call's clock never counts imports. A call that finds no
worker ready (they are starting, or a node is gone) waits in the pool and goes to the first that is. An actor that
dies loses the call it had, nothing else, and is replaced (`cluster.ray_crew` says until when).
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

from cluster.calls import raised
from cluster.pool import Call, CallOutcome, Finished, Lost, TimedOut, WorkerFactory, WorkersFailed
from cluster.ray_crew import Actor, Crew, one_line
from cluster.ray_session import RaySession

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 5.0  # whether Ray itself is alive, while no call comes back


@dataclass(frozen=True)
class _Waiting:
    """A call without a worker; ``payload`` is the pickled method and arguments."""

    ticket: int
    payload: bytes
    timeout_seconds: float | None


@dataclass(frozen=True)
class _Running:
    """A call that an actor has."""

    ticket: int
    actor: Actor
    timeout_seconds: float
    started: float

    @property
    def deadline(self) -> float:
        """Monotonic time in seconds; infinite without a time-out."""
        return self.started + self.timeout_seconds


class RayPool:
    """Workers in processes of their own, on this machine or on a cluster; see the module's text.

    The pool uses the session that is open in this process, or opens one for itself (see `RaySession`).

    Args:
        factory: makes a worker, in the worker's process; anything that cloudpickle can pickle.
        workers: how many; ``"auto"`` for as many as fit on the cluster's nodes.
        cpus_per_worker: CPUs that each reserves; its numerical libraries use as many threads (at least one).
        gpus_per_worker: GPUs that each reserves and sees; may be a fraction.
        address: the cluster; see `RaySession`.
        max_restarts: how many replacements of a worker may die one after another before they finish a call.
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
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[Any, _Running] = {}  # by the reference of the result
        self._tickets = itertools.count()
        self._closed = False
        self._looked = time.monotonic()
        cpus = None if workers == "auto" else max(1, math.ceil(workers * cpus_per_worker))
        self._session = RaySession(address, cpus=cpus, worker_output=worker_output)
        self._ray = self._session.ray
        try:
            room = self._session.capacity(cpus=cpus_per_worker, gpus=gpus_per_worker)
            self._workers = _how_many(workers, room, cpus_per_worker, gpus_per_worker)
            self._crew = Crew(
                self._ray,
                self._pickled("factory", factory),
                size=self._workers,
                cpus=cpus_per_worker,
                gpus=gpus_per_worker,
                max_restarts=max_restarts,
            )
        except BaseException:
            self._session.close()
            raise

    @property
    def workers(self) -> int:
        """Number of workers."""
        return self._workers

    @property
    def free(self) -> int:
        """Number of workers without a call; those that were given up after ``max_restarts`` do not count."""
        return max(0, self._crew.lines - len(self._running) - len(self._waiting))

    def submit(self, call: Call) -> int:
        """Give ``call`` to a free worker and return its ticket (0, 1, 2, ... in order).

        Raises:
            RuntimeError: no worker is free, or the pool is closed.
            WorkersFailed: no worker is left.
            ValueError: the arguments cannot be pickled.
        """
        if self._closed:
            raise RuntimeError("submit: the pool is closed; make a new one")
        if self._crew.failure is not None:
            raise self._crew.failure
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
            WorkersFailed: the factory raises, every worker has been given up, or Ray has died on this machine.
        """
        give_up = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        finished: list[Finished] = []
        while (self._running or self._waiting) and not finished and self._crew.failure is None:
            self._receive(finished, until=min(give_up, self._next_deadline()))
            self._expire(finished)
            self._dispatch()
            if time.monotonic() >= give_up:
                break
        if self._crew.failure is not None and not finished:
            raise self._crew.failure
        return finished

    def close(self) -> None:
        """Kill every worker, and end the Ray session if this pool opened it. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        crew = self._crew
        if self._ray.is_initialized():  # otherwise whoever opened the session has closed it, and the actors with it
            for actor in (*crew.starting.values(), *crew.idle, *(run.actor for run in self._running.values())):
                crew.kill(actor)
        self._running.clear()
        self._waiting.clear()
        self._session.close()

    def _dispatch(self) -> None:
        """Give waiting calls to idle workers."""
        while self._waiting and self._crew.idle:
            call, actor = self._waiting.popleft(), self._crew.idle.pop()
            reference = actor.handle.run.remote(call.payload)
            seconds = math.inf if call.timeout_seconds is None else call.timeout_seconds
            self._running[reference] = _Running(call.ticket, actor, seconds, time.monotonic())

    def _receive(self, finished: list[Finished], *, until: float) -> None:
        """Wait, at the latest ``until`` (monotonic seconds), for one call to come back or one worker to be ready."""
        timeout = None if until == math.inf else max(0.0, until - time.monotonic())
        soon = LOOK_EVERY_SECONDS if timeout is None else min(timeout, LOOK_EVERY_SECONDS)
        ready, _ = self._ray.wait([*self._running, *self._crew.starting], num_returns=1, timeout=soon)
        if not ready:
            self._look_after_ray()
        for reference in ready:
            if reference in self._running:
                finished.append(self._settle(reference))
            else:
                self._crew.welcome(reference)

    def _look_after_ray(self) -> None:
        """Fail if Ray's own process on this machine is gone: what is waited for would never come."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_SECONDS:
            return
        self._looked = now
        if not self._session.node_is_alive():
            self._crew.failure = WorkersFailed(
                "Ray's process on this machine (the raylet) has died, perhaps for want of memory; run the same command "
                "again to continue"
            )

    def _settle(self, reference: Any) -> Finished:
        """Take the outcome of a call that has come back; its worker is idle again, or dead and replaced."""
        run = self._running.pop(reference)
        outcome = self._outcome(reference)
        if isinstance(outcome, Lost):
            self._crew.bury(run.actor, outcome.message)
        else:
            run.actor.proven = True
            self._crew.idle.append(run.actor)
        return Finished(run.ticket, outcome)

    def _outcome(self, reference: Any) -> CallOutcome:
        try:
            payload: bytes = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Lost(one_line(error))
        try:
            outcome: CallOutcome = self._ray.cloudpickle.loads(payload)
        except Exception as error:  # a class that only the worker's machine has
            return raised(error)
        return outcome

    def _next_deadline(self) -> float:
        return min((run.deadline for run in self._running.values()), default=math.inf)

    def _expire(self, finished: list[Finished]) -> None:
        """Kill and replace the workers whose calls are past their time-out."""
        now = time.monotonic()
        late = [reference for reference, run in self._running.items() if run.deadline <= now]
        if not late:
            return
        in_time, _ = self._ray.wait(late, num_returns=len(late), timeout=0)  # came back while nobody looked
        finished.extend(self._settle(reference) for reference in in_time)
        for reference in late:
            if reference in self._running:
                run = self._running.pop(reference)
                self._crew.replace(run.actor)
                finished.append(Finished(run.ticket, TimedOut(run.timeout_seconds)))

    def _pickled(self, name: str, value: Any) -> bytes:
        try:
            pickled: bytes = self._ray.cloudpickle.dumps(value)
        except Exception as error:
            raise ValueError(f"{name}: expected picklable, got {type(error).__name__}: {error}") from error
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


def _how_many(workers: int | Literal["auto"], room: int, cpus: float, gpus: float) -> int:
    """Return the number of workers to start where ``room`` fit; says so when they will not all run at once."""
    if not room:
        raise ValueError(
            f"cpus_per_worker, gpus_per_worker: no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs "
            "for a worker; ask for less, or start a node that has them"
        )
    if workers == "auto":
        return room
    if workers > room:
        logger.warning("the cluster has room for %d of %d workers; the rest start when there is more", room, workers)
    return workers
