"""What the Ray pool does beyond the contract: dead processes, room on the cluster, what cannot be pickled."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from cluster.pool import Call, Finished, Lost, Pool, Raised, Returned, WorkersFailed
from cluster.ray_pool import RayPool
from cluster.testing import Probe, ask, broken_factory, drain

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def until(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Wait until ``true()`` holds, at most ``seconds``; return whether it does."""
    give_up = time.monotonic() + seconds
    while not true():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def pool() -> Iterator[Pool]:
    with closing(RayPool(Probe, workers=1)) as pool:
        yield pool


class DiesWhenMade:
    def __init__(self) -> None:
        os._exit(9)


class SecondMakingFails:
    """A factory that succeeds once."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __call__(self) -> Probe:
        if self.flag.exists():
            raise MemoryError("the device is still full")
        self.flag.touch()
        return Probe()


def test_a_killed_worker_loses_its_call_and_is_replaced(pool: Pool) -> None:
    process = ask(pool, "process").value
    ticket = pool.submit(Call("hang"))
    os.kill(process, signal.SIGKILL)
    [finished] = pool.wait()
    assert finished.ticket == ticket
    assert isinstance(finished.outcome, Lost)
    assert "died" in finished.outcome.message
    assert "\n" not in finished.outcome.message
    assert pool.free == 1
    assert ask(pool, "process").value != process


def test_a_hung_worker_is_killed(pool: Pool) -> None:
    process = ask(pool, "process").value
    ask(pool, "hang", timeout_seconds=0.05)
    assert until(lambda: not psutil.pid_exists(process))


def test_close_leaves_no_worker() -> None:
    pool = RayPool(Probe, workers=2)
    processes = set()
    while len(processes) < 2:
        pool.submit(Call("process"))
        pool.submit(Call("process"))
        processes.update(finished.outcome.value for finished in drain(pool))
    pool.submit(Call("hang"))
    pool.close()
    assert until(lambda: not any(psutil.pid_exists(process) for process in processes))


def test_workers_that_keep_dying_are_given_up() -> None:
    with closing(RayPool(Probe, workers=1, max_restarts=1)) as pool:
        outcomes = []
        with pytest.raises(WorkersFailed, match="died 2 times in a row before it finished a call"):
            while True:
                pool.submit(Call("die"))
                outcomes += [type(finished.outcome) for finished in pool.wait()]
        assert outcomes == [Lost, Lost]
        assert pool.free == 0


def test_a_finished_call_forgives_the_deaths_before_it() -> None:
    with closing(RayPool(Probe, workers=1, max_restarts=1)) as pool:
        for _ in range(3):
            assert isinstance(ask(pool, "die"), Lost)
            assert ask(pool, "echo", 1) == Returned(1)


def test_a_process_that_dies_in_the_factory_is_quoted() -> None:
    with closing(RayPool(DiesWhenMade, workers=1, max_restarts=0)) as pool:
        pool.submit(Call("count"))
        with pytest.raises(WorkersFailed, match="died 1 times in a row.* the last: The actor died"):
            pool.wait()


def test_a_replacement_that_cannot_be_made_is_tried_again_then_given_up(tmp_path: Path) -> None:
    factory = SecondMakingFails(tmp_path / "made")
    with closing(RayPool(factory, workers=1, max_restarts=1)) as pool:
        assert isinstance(ask(pool, "die"), Lost)
        pool.submit(Call("count"))
        with pytest.raises(WorkersFailed, match="MemoryError: the device is still full"):
            pool.wait()


def test_a_result_that_cannot_be_pickled_is_raised(pool: Pool) -> None:
    outcome = ask(pool, "lock")
    assert isinstance(outcome, Raised)
    assert (outcome.kind, outcome.message) == ("TypeError", "cannot pickle '_thread.lock' object")
    assert ask(pool, "count") == Returned(1)


def test_more_workers_than_room_share_what_there_is(caplog: pytest.LogCaptureFixture) -> None:
    with closing(RayPool(Probe, workers=3, cpus_per_worker=3)) as pool:
        assert "room for 1 of 3 workers" in caplog.text
        tickets = [pool.submit(Call("echo", (value,))) for value in range(3)]
        assert sorted(drain(pool)) == [Finished(ticket, Returned(ticket)) for ticket in tickets]


def test_auto_fills_the_cluster() -> None:
    with closing(RayPool(Probe, cpus_per_worker=2)) as pool:
        assert until(lambda: not pool.wait() and pool.workers == 2)  # workers of another test may be going still
        assert ask(pool, "variable", "OMP_NUM_THREADS") == Returned("2")


def test_a_pool_that_finds_all_workers_with_others_says_so_until_it_has_one() -> None:
    with closing(RayPool(Probe, workers=2, cpus_per_worker=2)) as first:
        # It has both before the second comes: workers of another test may be going still.
        assert until(lambda: bool(ask(first, "count")) and [w.doing for w in first.crew()] == ["idle"] * 2)
        assert first.crowd() is None
        with closing(RayPool(Probe, cpus_per_worker=2)) as second:
            assert until(lambda: not second.wait() and second.crowd() == (2, 2))
            first.close()
            assert until(lambda: not second.wait() and second.crowd() is None)
            assert ask(second, "count") == Returned(1)


def test_refuses_what_no_node_has() -> None:
    with pytest.raises(ValueError, match="no node of the cluster has 1 CPUs and 64 GPUs"):
        RayPool(Probe, gpus_per_worker=64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers: expected 'auto' or at least 1, got 0"),
        ({"workers": "many"}, "workers: expected 'auto' or at least 1, got 'many'"),
        ({"cpus_per_worker": -1}, "expected at least 0 and one of them above, got -1 and 0"),
        ({"cpus_per_worker": 0}, "expected at least 0 and one of them above, got 0 and 0"),
        ({"max_restarts": -1}, "max_restarts: expected at least 0, got -1"),
        ({"address": "http://10.0.0.1:8265"}, "URLs are for submitting jobs"),
    ],
)
def test_refuses_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RayPool(Probe, **arguments)


def test_refuses_a_factory_and_arguments_that_cannot_be_pickled(pool: Pool) -> None:
    lock = Probe().lock()
    with pytest.raises(ValueError, match="factory: expected picklable, got TypeError: .*lock"):
        RayPool(lambda: lock, workers=1)
    with pytest.raises(ValueError, match="arguments of echo: expected picklable"):
        pool.submit(Call("echo", (lock,)))
    assert pool.free == 1
    assert ask(pool, "echo", 1) == Returned(1)


def test_a_factory_that_fails_everywhere_is_not_tried_again(tmp_path: Path) -> None:
    tried = tmp_path / "tried"

    def factory() -> Probe:
        with tried.open("a") as file:
            file.write(".")
        return broken_factory()

    with closing(RayPool(factory, workers=1)) as pool:
        pool.submit(Call("count"))
        with pytest.raises(WorkersFailed, match="FileNotFoundError"):
            pool.wait()
        assert tried.read_text() == "."
