"""The pool on Ray: one long-lived actor per worker, and a driver loop on `ray.wait`.

With ``workers="auto"`` it follows the cluster: it grows when nodes join or somebody else leaves, shrinks when nodes
leave, and gives workers back, between two calls, until all pools of the cluster have equal shares. What happens on the
cluster is seen by a thread (`cluster.ray_watch`); the driver's loop only reads what it saw.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.calls import one_line, raised
from cluster.pool import Call, CallOutcome, Crowd, Finished, Lost, TimedOut, WorkerFactory, WorkerNow, WorkersFailed
from cluster.ray_crew import Actor, Crew
from cluster.ray_metrics import Meters
from cluster.ray_session import RaySession
from cluster.ray_watch import Watch

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 1.0  # at what the watch has seen, while no call comes back


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

    @property
    def deadline(self) -> float:
        """Monotonic time in seconds; infinite without a time-out."""
        return self.actor.since + self.timeout_seconds


class RayPool:
    """Workers in processes of their own, on this machine or on a cluster; see the module's text.

    The pool uses the session that is open in this process, or opens one for itself (see `RaySession`).

    Args:
        factory: makes a worker, in the worker's process; anything that cloudpickle can pickle.
        workers: how many; ``"auto"`` for as many as fit on the cluster's nodes, or this pool's share of them.
        cpus_per_worker: CPUs that each reserves; its numerical libraries use as many threads (at least one).
        gpus_per_worker: GPUs that each reserves and sees; may be a fraction.
        address: the cluster; see `RaySession`.
        max_restarts: how many replacements of a worker may die one after another before they finish a call.
        worker_output: show what workers print in the driver's terminal.
        name: unlike that of any other living pool on the cluster. A pool with the name of one whose driver died takes
            its place at once; others count as dead, and share the cluster no more, after 20 s of silence.

    Attributes:
        meters: numbers for Prometheus, through Ray's exporter.

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
        name: str | None = None,
    ) -> None:
        _check_needs(workers, cpus_per_worker, gpus_per_worker, max_restarts)
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[Any, _Running] = {}  # by the reference of the result
        self._tickets = itertools.count()
        self._closed = False
        self._elastic = workers == "auto"
        cpus = None if workers == "auto" else max(1, math.ceil(workers * cpus_per_worker))
        self._session = RaySession(address, cpus=cpus, worker_output=worker_output)
        self._ray = self._session.ray
        try:
            pickled = self._pickled("factory", factory)
            needs = {"CPU": cpus_per_worker, "GPU": gpus_per_worker}
            _check_room(self._session.capacity(needs), workers, needs)
            self._watch = Watch(self._session, needs, None if workers == "auto" else workers, pool=name)
        except BaseException:
            self._session.close()
            raise
        self._crew = Crew(self._ray, pickled, cpus=cpus_per_worker, gpus=gpus_per_worker, max_restarts=max_restarts)
        self._seen = self._watch.view
        self.meters = Meters()
        wanted = max(1, min(self._seen.share, self._seen.room)) if workers == "auto" else workers
        at_once = min(self._seen.room, wanted)
        self._crew.grow(at_once)
        self._crew.grow(wanted - at_once, hoped=True)
        self._watch.held = self._crew.held

    @property
    def workers(self) -> int:
        """Number of workers now; those that were given up after ``max_restarts`` do not count."""
        return self._crew.lines

    @property
    def free(self) -> int:
        """Number of workers without a call."""
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
            raise RuntimeError(f"submit: all {self.workers} workers are busy; call wait() first")
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
        self._follow()
        while (self._running or self._waiting) and not finished and self._crew.failure is None:
            self._receive(finished, until=min(give_up, self._next_deadline()))
            self._expire(finished)
            self._follow()
            self._dispatch()
            if time.monotonic() >= give_up:
                break
        if self._crew.failure is not None and not finished:
            raise self._crew.failure
        return finished

    def need(self, calls: int | None) -> None:
        """Say that from now on at most so many calls will be out; None for as many as there are workers.

        With ``workers="auto"`` the pools that share the cluster get the workers that this one does not need.
        """
        self._watch.needed = math.inf if calls is None else max(1, calls)

    def crew(self) -> Sequence[WorkerNow]:
        """Return what each worker does now, in no order."""
        return self._crew.now({run.actor: run.ticket for run in self._running.values()})

    def crowd(self) -> Crowd | None:
        """Return who has the workers that this pool waits for; None if it has one, or no other pool holds any."""
        view = self._watch.view
        return Crowd(view.pools, view.taken) if view.taken and self._crew.is_left_out else None

    def close(self) -> None:
        """Kill every worker, and end the Ray session if this pool opened it. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._watch.close()
        crew = self._crew
        if self._ray.is_initialized():  # otherwise whoever opened the session has closed it, and the actors with it
            for actor in tuple(crew.actors):
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
            actor.since = time.monotonic()
            self._running[reference] = _Running(call.ticket, actor, seconds)

    def _receive(self, finished: list[Finished], *, until: float) -> None:
        """Wait, at the latest ``until`` (monotonic seconds), for one call to come back or one worker to be ready."""
        timeout = None if until == math.inf else max(0.0, until - time.monotonic())
        soon = LOOK_EVERY_SECONDS if timeout is None else min(timeout, LOOK_EVERY_SECONDS)
        waited_for = [*self._running, *self._crew.starting, *self._crew.placing]
        for reference in self._ray.wait(waited_for, num_returns=1, timeout=soon)[0]:
            if reference in self._running:
                finished.append(self._settle(reference))
            else:
                self._crew.hear(reference)

    def _follow(self) -> None:
        """Do what the latest view of the cluster asks for."""
        self._watch.held = self._crew.held
        view = self._watch.view
        if view is self._seen or self._closed:
            return
        self._seen = view
        if not view.here:  # what is waited for would never come
            self._crew.failure = WorkersFailed(
                "Ray's process on this machine (the raylet) has died, perhaps for want of memory; run the same command "
                "again to continue"
            )
        elif self._elastic:
            before = self._crew.lines
            self._crew.hear_all()
            self._crew.resize(view.share, view.room, view.nodes)
            if self._crew.lines != before:
                logger.info("%d workers instead of %d: %d searches share the cluster", self.workers, before, view.pools)

    def _settle(self, reference: Any) -> Finished:
        """Take the outcome of a call that has come back; its worker is idle again, or dead and replaced."""
        run = self._running.pop(reference)
        outcome = self._outcome(reference)
        if isinstance(outcome, Lost):
            self._crew.bury(run.actor, outcome.message)
        else:
            self._crew.finished(run.actor)
        return Finished(run.ticket, outcome)

    def _outcome(self, reference: Any) -> CallOutcome:
        try:
            payload: bytes = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Lost(one_line(error), with_node=_is_of_node(self._ray, error))
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


def _is_of_node(ray: Any, error: Exception) -> bool:
    """Return whether a call was lost because the node is gone, or cannot be reached."""
    away = (ray.exceptions.ActorUnavailableError, ray.exceptions.NodeDiedError)
    return isinstance(error, away) or getattr(error, "preempted", False) or "node has died" in str(error)


def _check_needs(workers: int | str, cpus: float, gpus: float, max_restarts: int) -> None:
    if workers != "auto" and (not isinstance(workers, int) or workers < 1):
        raise ValueError(f"workers: expected 'auto' or at least 1, got {workers!r}")
    if cpus < 0 or gpus < 0 or cpus + gpus == 0:
        raise ValueError(
            f"cpus_per_worker, gpus_per_worker: expected at least 0 and one of them above, got {cpus} and {gpus}"
        )
    if max_restarts < 0:
        raise ValueError(f"max_restarts: expected at least 0, got {max_restarts}")


def _check_room(capacity: int, workers: int | Literal["auto"], needs: Mapping[str, float]) -> None:
    """Raise ValueError where no worker fits; say so when not all will run at once."""
    if not capacity:
        raise ValueError(
            f"cpus_per_worker, gpus_per_worker: no node of the cluster has {needs['CPU']:g} CPUs and {needs['GPU']:g} "
            "GPUs for a worker; ask for less, or start a node that has them"
        )
    if workers != "auto" and workers > capacity:
        logger.warning(
            "the cluster has room for %d of %d workers; the rest start when there is more", capacity, workers
        )
