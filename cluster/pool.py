"""How calls reach workers: the contract that every pool keeps.

A pool owns workers, each made by a factory on the machine where it runs, and alive until the pool closes or gives its
place to somebody else, which happens between two calls. Their number is fixed, or follows the machines that there are;
it changes in `wait` alone. A call is one method of a worker with JSON-like or picklable arguments. It always comes back
exactly once, as one of four outcomes; a pool never raises for what happens inside a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

WorkerFactory: TypeAlias = Callable[[], Any]
Doing = Literal["waiting", "starting", "idle", "busy"]


@dataclass(frozen=True)
class Returned:
    """The method returned `value`."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The method raised: the exception's type name, its text and the traceback as text."""

    kind: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class TimedOut:
    """The call took longer than its time-out; its worker was stopped and replaced."""

    seconds: float


@dataclass(frozen=True)
class Lost:
    """The worker's process or machine died while it had the call; the worker was replaced.

    `with_node` says that the machine, or the way to it, is gone: not what the worker did is to blame.
    """

    message: str
    with_node: bool = False


CallOutcome: TypeAlias = Returned | Raised | TimedOut | Lost


@dataclass(frozen=True)
class Call:
    """One call of a worker's method; `timeout_seconds` counts from the moment that the worker starts it."""

    method: str
    arguments: tuple[Any, ...] = ()
    timeout_seconds: float | None = None


@dataclass(frozen=True)
class Place:
    """Where a worker runs: the id of its node, the node's host name, and the process there."""

    node: str
    host: str
    process: int


@dataclass(frozen=True)
class WorkerNow:
    """What one worker does now: it waits for a place, starts (imports, loads), is idle, or is busy with a call.

    Attributes:
        place: where it runs; None while it has no place.
        seconds: since when it does so.
        ticket: of the call that it is busy with.
    """

    doing: Doing
    place: Place | None
    seconds: float
    ticket: int | None = None


class Crowd(NamedTuple):
    """Why a pool has no worker yet: ``pools``, this one included, share a cluster whose ``workers`` the others hold."""

    pools: int
    workers: int


class Finished(NamedTuple):
    """A call that came back: the ticket that `submit` gave, and the outcome."""

    ticket: int
    outcome: CallOutcome


class WorkersFailed(RuntimeError):
    """No worker could be made, or none is left: the factory's own error is quoted."""


@runtime_checkable
class Pool(Protocol):
    """See the module's text. Not thread-safe: one driver uses it."""

    @property
    def workers(self) -> int:
        """Number of workers now."""

    @property
    def free(self) -> int:
        """Number of workers without a call."""

    def submit(self, call: Call) -> int:
        """Give ``call`` to a free worker and return its ticket (0, 1, 2, ... in order).

        Raises:
            RuntimeError: no worker is free, or the pool is closed.
        """

    def wait(self, timeout_seconds: float | None = None) -> Sequence[Finished]:
        """Return the calls that have come back, waiting for at least one; empty after the time-out or with none out.

        Raises:
            WorkersFailed: workers cannot be made any more.
        """

    def need(self, calls: int | None) -> None:
        """Say that from now on at most so many calls will be out; None for as many as there are workers.

        A pool that shares its machines may give the other workers back.
        """

    def crew(self) -> Sequence[WorkerNow]:
        """Return what each worker does now, in no order."""

    def crowd(self) -> Crowd | None:
        """Return who has the workers that this pool waits for; None if it has one, or nobody shares its machines."""

    def close(self) -> None:
        """Stop every worker; calls that are out are dropped. Safe to call twice."""
