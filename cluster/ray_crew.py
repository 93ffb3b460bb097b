"""The actors of a Ray pool: made, found ready, replaced when they die, given up when that does not help, let go."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.calls import factory_failed, one_line
from cluster.pool import Doing, Place, Raised, WorkerNow, WorkersFailed
from cluster.ray_worker import WorkerHost

logger = logging.getLogger(__name__)

PLACED_WITHIN_SECONDS = 30.0  # an actor without a place is let go after so long, if another has one


@dataclass(eq=False)
class Actor:
    """One actor.

    Attributes:
        handle: Ray's handle.
        deaths: how many of its predecessors died one after another before they finished a call.
        hoped: it was started where there seemed to be no room.
        proven: it has finished a call.
        place: where it runs, once it does.
        since: monotonic seconds: when it was started, was ready, or got or finished its last call.
    """

    handle: Any
    deaths: int
    hoped: bool = False
    proven: bool = False
    place: Place | None = None
    since: float = 0.0


class Crew:
    """A number of lines of actors. When an actor dies, the next of its line is started.

    A line whose actors die one after another before they finish a call is given up. The crew has failed when no line
    is left, or when the factory raises before any worker was ever ready: it would raise everywhere.

    Args:
        ray: the module, connected.
        factory: the pickled factory.
        cpus, gpus: what each actor reserves.
        max_restarts: how many replacements in a row may die before they finish a call.

    Attributes:
        starting: actors whose workers are being made, by the reference of that call.
        placing: actors that have no place yet, by the reference of the call that tells it.
        idle: actors that are ready and have no call; the last to come is the first to be used again.
        lines: how many lines are left.
        actors: all that have not died or been let go.
        failure: why the crew has failed, or None.
    """

    def __init__(self, ray: Any, factory: bytes, *, cpus: float, gpus: float, max_restarts: int) -> None:
        self.starting: dict[Any, Actor] = {}
        self.placing: dict[Any, Actor] = {}
        self.idle: list[Actor] = []
        self.lines = 0
        self.actors: set[Actor] = set()
        self.failure: WorkersFailed | None = None
        self._nodes: frozenset[str] | None = None  # that are there, as far as is known
        self._goal: int | None = None  # how many lines there shall be, if that changes
        self._given_up = 0
        self._ray = ray
        self._factory = factory
        self._max_restarts = max_restarts
        self._threads = max(1, int(cpus))
        self._any_ready = False
        self._actor_class = ray.remote(WorkerHost).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )

    @property
    def held(self) -> int:
        """Lines that have a place on the cluster, or are to get one that was seen to be free."""
        return self.lines - sum(actor.hoped for actor in self.placing.values())

    @property
    def is_left_out(self) -> bool:
        """Whether no actor has a place, and none was seen that one could get."""
        now = time.monotonic()
        return bool(self.actors) and all(
            actor.place is None and (actor.hoped or now - actor.since > PLACED_WITHIN_SECONDS) for actor in self.actors
        )

    def grow(self, count: int, *, hoped: bool = False) -> None:
        """Start ``count`` lines; ``hoped`` where there seems to be no room for them yet."""
        self.lines += count
        for _ in range(count):
            self._start(deaths=0, hoped=hoped)

    def resize(self, share: int, room: int, nodes: frozenset[str]) -> None:
        """Come nearer to ``share`` lines, of which ``room`` more fit on ``nodes`` now; at least one stays.

        Actors with a call are left alone; they go when their call has come back, or is lost with their node.
        """
        self._goal, self._nodes = max(1, share - self._given_up), nodes
        now = time.monotonic()
        hopeless = [a for a in self.placing.values() if now - a.since > PLACED_WITHIN_SECONDS]
        placed = self.lines - len(self.placing)
        for actor in hopeless if placed else hopeless[1:]:
            self.dismiss(actor)
        surplus = [*sorted(self.starting.values(), key=lambda actor: actor.place is not None), *self.idle]
        for actor in surplus[: self._too_many()]:
            self.dismiss(actor)
        if not self.placing:  # else what is free now may be theirs
            self.grow(max(0, min(self._goal - self.lines, room)))

    def _too_many(self) -> int:
        """How many lines must go beside those that go with their nodes."""
        if self._goal is None:
            return 0
        return max(0, self.lines - sum(map(self._is_cut_off, self.actors)) - self._goal)

    def _is_cut_off(self, actor: Actor) -> bool:
        """Whether the node of ``actor`` is gone: the call that it has will be lost."""
        return self._nodes is not None and actor.place is not None and actor.place.node not in self._nodes

    def finished(self, actor: Actor) -> None:
        """Take ``actor``, whose call has come back: it is idle again, or let go if there are too many."""
        actor.proven = True
        self._rest(actor)
        if self._too_many():
            self.dismiss(actor)

    def hear_all(self) -> None:
        """Take all that actors have said of themselves, without waiting."""
        said = [*self.placing, *self.starting]
        for reference in self._ray.wait(said, num_returns=len(said), timeout=0)[0] if said else ():
            self.hear(reference)

    def hear(self, reference: Any) -> None:
        """Take what an actor has said of itself; ``reference`` is a key of `placing` or `starting`."""
        if reference in self.placing:
            self._place(reference)
        elif reference in self.starting:
            self._welcome(reference)

    def _place(self, reference: Any) -> None:
        """Take the place of an actor."""
        actor = self.placing.pop(reference)
        try:
            actor.place = self._ray.get(reference)
            actor.hoped = False
        except self._ray.exceptions.RayError:
            return  # it is dead, which the call that makes its worker says as well

    def _welcome(self, reference: Any) -> None:
        """Take the actor whose start has come to an end: it is idle, or has failed."""
        actor = self.starting.pop(reference)
        try:
            problem: Raised | None = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self.bury(actor, one_line(error))
            return
        if problem is None:
            self._any_ready = True
            self._rest(actor)
        elif not self._any_ready:
            self.failure = factory_failed(problem)
        else:
            self.kill(actor)
            self.bury(actor, str(factory_failed(problem)))

    def _rest(self, actor: Actor) -> None:
        actor.since = time.monotonic()
        self.idle.append(actor)

    def now(self, tickets: Mapping[Actor, int]) -> list[WorkerNow]:
        """Return what every actor does; ``tickets`` are those of the busy ones."""
        idle, moment = set(self.idle), time.monotonic()

        def doing(actor: Actor) -> Doing:
            if actor in tickets:
                return "busy"
            if actor in idle:
                return "idle"
            return "starting" if actor.place else "waiting"

        return [WorkerNow(doing(a), a.place, moment - a.since, tickets.get(a)) for a in self.actors]

    def bury(self, actor: Actor, message: str) -> None:
        """Replace ``actor``, which is dead for the reason in ``message``, or give its line up.

        If lines come and go with the nodes, its line ends with its node.
        """
        self.actors.discard(actor)
        if self._is_cut_off(actor) and self.lines > 1:
            self.lines -= 1
            return
        deaths = 0 if actor.proven else actor.deaths + 1
        if deaths <= self._max_restarts:
            logger.info("a worker died and is replaced: %s", message)
            self._start(deaths=deaths)
            return
        logger.warning("a worker died %d times in a row before it finished a call and is given up", deaths)
        self.lines -= 1
        self._given_up += 1
        if not self.lines:
            self.failure = WorkersFailed(
                f"no worker is left: each died {deaths} times in a row before it finished a call; the last: {message}"
            )

    def replace(self, actor: Actor) -> None:
        """Kill ``actor``, which is late but not faulty, and start the next of its line."""
        self.kill(actor)
        self._start(deaths=0 if actor.proven else actor.deaths)

    def dismiss(self, actor: Actor) -> None:
        """End ``actor``, which has no call, and its line: its place belongs to somebody else."""
        self.kill(actor)
        self.lines -= 1
        self.idle = [other for other in self.idle if other is not actor]
        for actors in (self.starting, self.placing):
            for reference in [key for key, other in actors.items() if other is actor]:
                del actors[reference]

    def kill(self, actor: Actor) -> None:
        """End the process of ``actor``, whatever it does."""
        self.actors.discard(actor)
        self._ray.kill(actor.handle, no_restart=True)

    def _start(self, *, deaths: int, hoped: bool = False) -> None:
        handle = self._actor_class.remote(self._threads)
        actor = Actor(handle, deaths, hoped, since=time.monotonic())
        self.actors.add(actor)
        self.placing[handle.place.remote()] = actor
        self.starting[handle.start.remote(self._factory)] = actor
