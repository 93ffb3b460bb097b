# ruff: noqa: D102 - the names of the tests are their descriptions
"""The contract of a pool as a test suite: subclass `PoolContract`, say how a pool is made, and run it with pytest."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import pytest

from cluster.pool import Call, Finished, Pool, Raised, Returned, TimedOut, WorkerFactory, WorkersFailed

MakePool: TypeAlias = Callable[[WorkerFactory, int], Pool]


class Unpicklable(Exception):
    """An exception that carries a lock."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")
        self.lock = threading.Lock()


class Unprintable(Exception):
    """An exception whose text cannot be made."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Probe:
    """A worker for tests."""

    def __init__(self) -> None:
        self.calls = 0

    def echo(self, value: Any) -> Any:
        """Return ``value``."""
        return value

    def count(self) -> int:
        """Return how often this worker's `count` was called."""
        self.calls += 1
        return self.calls

    def fail(self, text: str) -> NoReturn:
        """Raise a ValueError."""
        raise ValueError(text)

    def fail_unpicklably(self) -> NoReturn:
        """Raise an exception that cannot be pickled."""
        raise Unpicklable("half", "open")

    def fail_unprintably(self) -> NoReturn:
        """Raise an exception without a text."""
        raise Unprintable

    def leave(self) -> NoReturn:
        """Raise SystemExit."""
        raise SystemExit("enough")

    def lock(self) -> Any:
        """Return what cannot be pickled."""
        return threading.Lock()

    def hang(self) -> None:
        """Do not return."""
        threading.Event().wait()

    def wait_for(self, path: str) -> str:
        """Return ``path`` when there is a file."""
        while not Path(path).exists():
            time.sleep(0.01)
        return path

    def variable(self, name: str) -> str | None:
        """Return an environment variable of the worker's process."""
        return os.environ.get(name)

    def process(self) -> int:
        """Return the worker's process id."""
        return os.getpid()

    def die(self) -> None:
        """End the worker's process without a word."""
        os._exit(7)


def broken_factory() -> NoReturn:
    """Make no worker."""
    raise FileNotFoundError("no such model: /models/absent")


def drain(pool: Pool) -> list[Finished]:
    """Return all calls that are out, in the order in which they come back."""
    finished: list[Finished] = []
    while batch := pool.wait():
        finished.extend(batch)
    return finished


def ask(pool: Pool, method: str, *arguments: Any, timeout_seconds: float | None = None) -> Any:
    """Make one call, wait for it and return the outcome."""
    ticket = pool.submit(Call(method, arguments, timeout_seconds))
    [finished] = pool.wait()
    assert finished.ticket == ticket
    return finished.outcome


class PoolContract:
    """Every pool passes these. A subclass gives the fixture `make_pool`, and may widen the scope of `pool`."""

    @pytest.fixture
    def make_pool(self) -> MakePool:
        """Return what makes a pool from a factory and a number of workers."""
        raise NotImplementedError("subclasses of PoolContract define the fixture make_pool")

    @pytest.fixture
    def pool(self, make_pool: MakePool) -> Iterator[Pool]:
        """Yield a pool of two; every test leaves it with nothing out."""
        with closing(make_pool(Probe, 2)) as pool:
            yield pool

    def test_is_a_pool(self, pool: Pool) -> None:
        assert isinstance(pool, Pool)

    def test_every_call_comes_back_once_with_its_own_result(self, pool: Pool) -> None:
        results: dict[int, Any] = {}
        expected: dict[int, int] = {}
        for value in range(50):
            while not pool.free:
                for ticket, outcome in pool.wait():
                    assert ticket not in results
                    results[ticket] = outcome
            expected[pool.submit(Call("echo", (value,)))] = value
        results.update(drain(pool))
        assert results == {ticket: Returned(value) for ticket, value in expected.items()}
        assert pool.wait() == []

    def test_tickets_count_from_zero(self, make_pool: MakePool) -> None:
        with closing(make_pool(Probe, 1)) as pool:
            tickets = []
            for _ in range(4):
                tickets.append(pool.submit(Call("count")))
                drain(pool)
            assert tickets == [0, 1, 2, 3]

    def test_counts_workers_and_free_ones(self, pool: Pool) -> None:
        assert (pool.workers, pool.free) == (2, 2)
        pool.submit(Call("count"))
        assert (pool.workers, pool.free) == (2, 1)
        pool.submit(Call("count"))
        assert (pool.workers, pool.free) == (2, 0)
        drain(pool)
        assert (pool.workers, pool.free) == (2, 2)

    def test_says_what_each_worker_does(self, pool: Pool, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        slow = pool.submit(Call("wait_for", (str(gate),)))
        process = ask(pool, "process").value
        [busy] = [worker for worker in pool.crew() if worker.doing == "busy"]
        [idle] = [worker for worker in pool.crew() if worker.doing == "idle"]
        assert len(pool.crew()) == pool.workers
        assert (busy.ticket, idle.ticket) == (slow, None)
        assert busy.place is not None and idle.place is not None
        assert (idle.place.host, idle.place.process) == (socket.gethostname(), process)
        assert busy.seconds > idle.seconds >= 0
        gate.touch()
        drain(pool)
        assert {worker.doing for worker in pool.crew()} == {"idle"}

    def test_refuses_a_call_without_a_free_worker(self, pool: Pool) -> None:
        pool.submit(Call("count"))
        pool.submit(Call("count"))
        with pytest.raises(RuntimeError, match="all 2 workers are busy"):
            pool.submit(Call("count"))
        assert len(drain(pool)) == 2  # the refusal cost nothing

    def test_one_worker_keeps_its_state_and_the_order(self, make_pool: MakePool) -> None:
        with closing(make_pool(Probe, 1)) as pool:
            assert [ask(pool, "count") for _ in range(5)] == [Returned(n) for n in range(1, 6)]

    def test_a_slow_call_delays_nobody(self, pool: Pool, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        slow = pool.submit(Call("wait_for", (str(gate),)))
        for value in range(5):
            assert ask(pool, "echo", value) == Returned(value)
        gate.touch()
        assert drain(pool) == [Finished(slow, Returned(str(gate)))]

    def test_an_exception_comes_back_as_kind_message_and_traceback(self, pool: Pool) -> None:
        outcome = ask(pool, "fail", "what went wrong")
        assert isinstance(outcome, Raised)
        assert (outcome.kind, outcome.message) == ("ValueError", "what went wrong")
        assert "in fail" in outcome.traceback
        assert "in perform" not in outcome.traceback  # ours, of no use to the reader
        assert ask(pool, "echo", 1) == Returned(1)

    @pytest.mark.parametrize(
        ("method", "kind", "message"),
        [
            ("fail_unpicklably", "Unpicklable", "half open"),
            ("fail_unprintably", "Unprintable", "(its text cannot be made: ValueError)"),
            ("leave", "SystemExit", "enough"),
            ("no_such_method", "AttributeError", "'Probe' object has no attribute 'no_such_method'"),
        ],
    )
    def test_no_exception_breaks_the_pool(self, pool: Pool, method: str, kind: str, message: str) -> None:
        outcome = ask(pool, method)
        assert isinstance(outcome, Raised)
        assert (outcome.kind, outcome.message) == (kind, message)
        assert ask(pool, "echo", 1) == Returned(1)

    def test_a_call_past_its_time_out_comes_back_and_its_worker_is_replaced(self, make_pool: MakePool) -> None:
        with closing(make_pool(Probe, 1)) as pool:
            assert ask(pool, "count") == Returned(1)
            assert ask(pool, "hang", timeout_seconds=0.05) == TimedOut(0.05)
            assert pool.free == 1
            assert ask(pool, "count") == Returned(1)  # a new worker, which counts from the start

    def test_a_time_out_leaves_the_others_alone(self, pool: Pool, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        slow = pool.submit(Call("wait_for", (str(gate),), 3600.0))
        assert ask(pool, "hang", timeout_seconds=0.05) == TimedOut(0.05)
        gate.touch()
        assert drain(pool) == [Finished(slow, Returned(str(gate)))]

    def test_a_call_within_its_time_out_returns(self, pool: Pool) -> None:
        assert ask(pool, "echo", 1, timeout_seconds=3600.0) == Returned(1)

    def test_wait_returns_empty_after_its_time_out(self, pool: Pool, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        pool.submit(Call("wait_for", (str(gate),)))
        assert pool.wait(0.05) == []
        assert pool.wait(0.0) == []
        assert pool.free == 1
        gate.touch()
        assert len(drain(pool)) == 1

    def test_wait_returns_empty_when_nothing_is_out(self, pool: Pool) -> None:
        assert pool.wait() == []

    def test_a_factory_that_raises_is_quoted(self, make_pool: MakePool) -> None:
        with closing(make_pool(broken_factory, 2)) as pool:
            pool.submit(Call("count"))
            with pytest.raises(WorkersFailed, match="FileNotFoundError: no such model: /models/absent"):
                pool.wait()
            with pytest.raises(WorkersFailed, match="/models/absent"):
                pool.submit(Call("count"))

    def test_close_drops_what_is_out_and_can_be_repeated(self, make_pool: MakePool) -> None:
        pool = make_pool(Probe, 1)
        pool.submit(Call("hang"))
        pool.close()
        pool.close()
        assert pool.wait() == []
        with pytest.raises(RuntimeError, match="the pool is closed"):
            pool.submit(Call("count"))
