import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.in_process import InProcessPool
from cluster.pool import Call, Finished, Returned, TimedOut
from cluster.testing import MakePool, PoolContract, Probe, ask, drain


class TestInProcessPool(PoolContract):
    @pytest.fixture
    def make_pool(self) -> MakePool:
        return lambda factory, workers: InProcessPool(factory, workers=workers)


class Gated:
    """A worker whose calls wait for gates that the test opens."""

    def __init__(self, gates: list[threading.Event]) -> None:
        self.gates = gates

    def pass_gate(self, index: int) -> int:
        assert self.gates[index].wait(60)
        return index


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), workers=st.integers(1, 6))
def test_calls_come_back_in_the_order_in_which_they_end(order: list[int], workers: int) -> None:
    gates = [threading.Event() for _ in order]
    pool = InProcessPool(lambda: Gated(gates), workers=workers)
    out: dict[int, int] = {}
    waiting = list(range(6))
    back = []
    while waiting or out:
        while waiting and pool.free:
            index = waiting.pop(0)
            out[pool.submit(Call("pass_gate", (index,)))] = index
        opened = min(out.values(), key=order.index)
        gates[opened].set()
        [finished] = pool.wait()
        assert out.pop(finished.ticket) == opened
        assert finished.outcome == Returned(opened)
        back.append(opened)
    assert sorted(back) == list(range(6))
    pool.close()


def test_many_workers_run_at_the_same_time() -> None:
    together = threading.Barrier(200, timeout=60)

    class Meeting:
        def attend(self, number: int) -> int:
            together.wait()  # passes only when all two hundred are inside
            return number

    pool = InProcessPool(Meeting, workers=200)
    for number in range(200):
        pool.submit(Call("attend", (number,), 3600.0))
    assert sorted(drain(pool)) == [Finished(number, Returned(number)) for number in range(200)]
    pool.close()


def test_workers_are_made_when_they_are_needed() -> None:
    made = []

    def factory() -> Probe:
        made.append(1)
        return Probe()

    pool = InProcessPool(factory, workers=8)
    assert made == []
    for _ in range(5):
        ask(pool, "echo", 0)
    assert len(made) == 1
    pool.close()


def test_the_clock_starts_when_the_worker_is_made() -> None:
    imported = threading.Event()

    def slow_factory() -> Probe:
        assert imported.wait(60)
        return Probe()

    pool = InProcessPool(slow_factory)
    ticket = pool.submit(Call("hang", (), 0.01))
    assert pool.wait(0.2) == []  # were the factory's time counted, the call would be past its time-out
    imported.set()
    assert pool.wait() == [Finished(ticket, TimedOut(0.01))]
    pool.close()


def test_an_abandoned_worker_is_not_heard_and_its_thread_ends() -> None:
    gates = [threading.Event(), threading.Event()]
    pool = InProcessPool(lambda: Gated(gates), workers=1)
    before = set(threading.enumerate())
    late = pool.submit(Call("pass_gate", (0,), 0.05))
    [abandoned] = set(threading.enumerate()) - before
    assert pool.wait() == [Finished(late, TimedOut(0.05))]
    gates[0].set()
    abandoned.join(60)
    assert not abandoned.is_alive()
    gates[1].set()
    assert ask(pool, "pass_gate", 1) == Returned(1)  # and not the late 0
    pool.close()


def test_close_ends_the_threads() -> None:
    before = set(threading.enumerate())
    pool = InProcessPool(Probe, workers=3)
    for _ in range(3):
        pool.submit(Call("echo", (1,)))
    drain(pool)
    threads = set(threading.enumerate()) - before
    assert threads
    pool.close()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_values_are_passed_by_reference() -> None:
    value = object()
    pool = InProcessPool(Probe)
    assert ask(pool, "echo", value).value is value
    pool.close()


def test_refuses_no_workers() -> None:
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        InProcessPool(Probe, workers=0)
