"""The actors of a Ray pool: made, found ready, replaced when they die, given up when that does not help."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from cluster.calls import factory_failed
from cluster.pool import Raised, WorkersFailed
from cluster.ray_worker import WorkerHost

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Actor:
    """One actor.

    Attributes:
        handle: Ray's handle.
        deaths: how many of its predecessors died one after another before they finished a call.
        proven: it has finished a call.
    """

    handle: Any
    deaths: int
    proven: bool = False


class Crew:
    """A number of lines of actors. When an actor dies, the next of its line is started.

    A line whose actors die one after another before they finish a call is given up. The crew has failed when no line
    is left, or when the factory raises before any worker was ever ready: it would raise everywhere.

    Args:
        ray: the module, connected.
        factory: the pickled factory.
        size: number of lines.
        cpus, gpus: what each actor reserves.
        max_restarts: how many replacements in a row may die before they finish a call.

    Attributes:
        starting: actors whose workers are being made, by the reference of that call.
        idle: actors that are ready and have no call; the last to come is the first to be used again.
        lines: how many lines are left.
        failure: why the crew has failed, or None.
    """

    def __init__(self, ray: Any, factory: bytes, *, size: int, cpus: float, gpus: float, max_restarts: int) -> None:
        self.starting: dict[Any, Actor] = {}
        self.idle: list[Actor] = []
        self.lines = size
        self.failure: WorkersFailed | None = None
        self._ray = ray
        self._factory = factory
        self._max_restarts = max_restarts
        self._threads = max(1, int(cpus))
        self._any_ready = False
        self._actor_class = ray.remote(WorkerHost).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )
        for _ in range(size):
            self._start(deaths=0)

    def welcome(self, reference: Any) -> None:
        """Take the actor whose start (a key of `starting`) has come to an end: it is idle, or has failed."""
        actor = self.starting.pop(reference)
        try:
            problem: Raised | None = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self.bury(actor, one_line(error))
            return
        if problem is None:
            self._any_ready = True
            self.idle.append(actor)
        elif not self._any_ready:
            self.failure = factory_failed(problem)
        else:
            self.kill(actor)
            self.bury(actor, str(factory_failed(problem)))

    def bury(self, actor: Actor, message: str) -> None:
        """Replace ``actor``, which is dead for the reason in ``message``, or give its line up."""
        deaths = 0 if actor.proven else actor.deaths + 1
        if deaths <= self._max_restarts:
            logger.info("a worker died and is replaced: %s", message)
            self._start(deaths=deaths)
            return
        logger.warning("a worker died %d times in a row before it finished a call and is given up", deaths)
        self.lines -= 1
        if not self.lines:
            self.failure = WorkersFailed(
                f"no worker is left: each died {deaths} times in a row before it finished a call; the last: {message}"
            )

    def replace(self, actor: Actor) -> None:
        """Kill ``actor``, which is late but not faulty, and start the next of its line."""
        self.kill(actor)
        self._start(deaths=0 if actor.proven else actor.deaths)

    def kill(self, actor: Actor) -> None:
        """End the process of ``actor``, whatever it does."""
        self._ray.kill(actor.handle, no_restart=True)

    def _start(self, *, deaths: int) -> None:
        handle = self._actor_class.remote(self._threads)
        self.starting[handle.start.remote(self._factory)] = Actor(handle, deaths)


def one_line(error: Exception) -> str:
    """Return the text of one of Ray's errors (they fill a dozen lines) as one line."""
    return " ".join(str(error).split())
