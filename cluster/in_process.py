"""The pool without Ray: workers are objects of this process, one daemon thread each.

For debugging, for machines with one device, and for tests. It keeps the contract of `cluster.pool`, with what a
single process implies:

- Nothing is pickled: arguments and results are passed by reference.
- A thread cannot be stopped. A worker that exceeds its time-out is *abandoned*: it keeps its memory and its CPU until
  its method returns by itself (then thread and worker go), while a new worker takes its place.
- A crash of the process is a crash of the driver, so `Lost` does not occur.
- A worker is made by its thread at its first call; workers that are never needed are never made.

Completions arrive through one queue, so waiting costs nothing however many workers there are.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from cluster.calls import factory_failed, make_worker, perform
from cluster.pool import (
    Call,
    Finished,
    Place,
    Raised,
    Returned,
    TimedOut,
    WorkerFactory,
    WorkerNow,
    WorkersFailed,
)

THREAD_NAME = "worker-of-call-"
CLOSE_SECONDS = 3.0


def busy() -> bool:
    """Whether a worker's thread of this process still runs: then leave by `os._exit`, see `InProcessPool.close`."""
    return any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate())


@dataclass(frozen=True)
class _Started:
    """The worker begins a call that has a time-out; `at` is monotonic time in seconds."""

    ticket: int
    timeout_seconds: float
    at: float


@dataclass(frozen=True)
class _Ended:
    ticket: int
    outcome: Returned | Raised


@dataclass(frozen=True)
class _Unmade:
    """The factory raised."""

    cause: Raised


_Event: TypeAlias = _Started | _Ended | _Unmade
_Job: TypeAlias = tuple[int, Call] | None


def _serve(factory: WorkerFactory, inbox: queue.SimpleQueue[_Job], report: Callable[[_Event], None]) -> None:
    """Run the calls of one worker until the inbox says None."""
    worker: Any = None
    made = False
    while (job := inbox.get()) is not None:
        ticket, call = job
        if not made:
            making = make_worker(factory)
            if isinstance(making, Raised):
                report(_Unmade(making))
                return
            worker, made = making.value, True
            del making
        if call.timeout_seconds is not None:
            report(_Started(ticket, call.timeout_seconds, time.monotonic()))
        report(_Ended(ticket, perform(worker, call.method, call.arguments)))
        del job, call  # arguments may be large, and the next call may be long in coming


class _Seat:
    """A worker's thread and the inbox through which it gets its calls."""

    def __init__(self, factory: WorkerFactory, report: Callable[[_Event], None], name: str) -> None:
        self.since = time.monotonic()  # when it got its call, or was done with it
        self.inbox: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.thread = threading.Thread(target=_serve, args=(factory, self.inbox, report), name=name, daemon=True)
        self.thread.start()


class InProcessPool:
    """Workers in threads of this process; see the module's text.

    Args:
        factory: makes a worker, in the worker's thread.
        workers: how many calls may run at once.

    Raises:
        ValueError: ``workers`` is not positive.
    """

    def __init__(self, factory: WorkerFactory, *, workers: int = 1) -> None:
        if workers < 1:
            raise ValueError(f"workers: expected at least 1, got {workers}")
        self._factory = factory
        self._workers = workers
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._idle: list[_Seat] = []  # the last to finish is the first to be used again: its memory is warm
        self._out: dict[int, _Seat] = {}
        self._deadlines: list[tuple[float, int, float]] = []  # heap of (moment, ticket, time-out in seconds)
        self._tickets = itertools.count()
        self._failure: WorkersFailed | None = None
        self._closed = False
        self._opened = time.monotonic()

    @property
    def workers(self) -> int:
        """Number of workers."""
        return self._workers

    @property
    def free(self) -> int:
        """Number of workers without a call."""
        return self._workers - len(self._out)

    def submit(self, call: Call) -> int:
        """Give ``call`` to a free worker and return its ticket (0, 1, 2, ... in order).

        Raises:
            RuntimeError: no worker is free, or the pool is closed.
            WorkersFailed: the factory has raised before.
        """
        if self._closed:
            raise RuntimeError("submit: the pool is closed; make a new one")
        if self._failure is not None:
            raise self._failure
        if not self.free:
            raise RuntimeError(f"submit: all {self._workers} workers are busy; call wait() first")
        ticket = next(self._tickets)
        seat = self._idle.pop() if self._idle else self._new_seat(ticket)
        self._out[ticket] = seat
        seat.since = time.monotonic()
        seat.inbox.put((ticket, call))
        return ticket

    def wait(self, timeout_seconds: float | None = None) -> Sequence[Finished]:
        """Return the calls that have come back, waiting for at least one; empty after the time-out or with none out.

        Raises:
            WorkersFailed: the factory raised.
        """
        give_up = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        finished: list[Finished] = []
        while self._out and not finished and self._failure is None:
            self._receive(finished, until=min(give_up, self._next_deadline()))
            if not finished:
                self._expire(finished)
            if time.monotonic() >= give_up:
                break
        if self._failure is not None and not finished:
            raise self._failure
        return finished

    def need(self, calls: int | None) -> None:
        """Nobody else could use the workers."""

    def crew(self) -> Sequence[WorkerNow]:
        """Return what each worker does now, in no order; one that was never needed waits."""
        now, place = time.monotonic(), Place("", socket.gethostname(), os.getpid())
        busy = [WorkerNow("busy", place, now - seat.since, ticket) for ticket, seat in self._out.items()]
        idle = [WorkerNow("idle", place, now - seat.since) for seat in self._idle]
        unmade = self._workers - len(busy) - len(idle)
        return [*busy, *idle, *(WorkerNow("waiting", None, now - self._opened) for _ in range(unmade))]

    def crowd(self) -> None:
        """Return None: nobody else uses these workers."""

    def close(self) -> None:
        """Let every worker go; a busy one gets a few seconds to return, unheard. Safe to call twice.

        A thread that is still inside a numerical library when the interpreter shuts down can crash it, so an
        ordinary candidate is allowed to end; see also `busy`.
        """
        self._closed = True
        for seat in (*self._idle, *self._out.values()):
            seat.inbox.put(None)
        until = time.monotonic() + CLOSE_SECONDS
        for seat in self._out.values():
            seat.thread.join(max(0.0, until - time.monotonic()))
        self._idle.clear()
        self._out.clear()
        self._deadlines.clear()

    def _new_seat(self, ticket: int) -> _Seat:
        return _Seat(self._factory, self._events.put, f"{THREAD_NAME}{ticket}")

    def _receive(self, finished: list[Finished], *, until: float) -> None:
        """Wait for one event, at the latest ``until`` (monotonic seconds), then take all that are there."""
        timeout = None if until == math.inf else min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
        try:
            self._take(self._events.get(timeout=timeout), finished)
            while True:
                self._take(self._events.get_nowait(), finished)
        except queue.Empty:
            return

    def _take(self, event: _Event, finished: list[Finished]) -> None:
        if isinstance(event, _Unmade):
            self._failure = factory_failed(event.cause)
            return
        if event.ticket not in self._out:
            return  # from a worker that was abandoned
        if isinstance(event, _Started):
            moment = event.at + event.timeout_seconds
            heapq.heappush(self._deadlines, (moment, event.ticket, event.timeout_seconds))
        else:
            seat = self._out.pop(event.ticket)
            seat.since = time.monotonic()
            self._idle.append(seat)
            finished.append(Finished(event.ticket, event.outcome))

    def _next_deadline(self) -> float:
        while self._deadlines and self._deadlines[0][1] not in self._out:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def _expire(self, finished: list[Finished]) -> None:
        """Abandon the workers whose calls are past their time-out; new ones are made when next needed."""
        while self._next_deadline() <= time.monotonic():
            _, ticket, seconds = heapq.heappop(self._deadlines)
            self._out.pop(ticket).inbox.put(None)
            finished.append(Finished(ticket, TimedOut(seconds)))
