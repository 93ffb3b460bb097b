"""What a driver that uses Ray leaves behind, seen from outside: drivers are processes of their own here."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.ray_session import RaySession

ROOT = Path(__file__).parents[2]

# The packages are found through sys.path alone, and the worker's class is in __main__: both must reach the workers.
HEAD = f"""
import json, os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from contextlib import closing
import psutil
from cluster.pool import Call, WorkersFailed
from cluster.ray_pool import RayPool
from cluster.ray_session import RaySession
from cluster.testing import Probe, ask

class Own(Probe):
    def folder(self):
        return os.getcwd()

def say(**values):
    sys.stdout.write(json.dumps(values) + chr(10))
    sys.stdout.flush()

def below():
    return [process.pid for process in psutil.Process().children(recursive=True)]
"""

HANGS = """
with closing(RayPool(Own, workers=2)) as pool:
    workers = set()
    while len(workers) < 2:
        pool.submit(Call("process")); pool.submit(Call("process"))
        while batch := pool.wait():
            workers.update(finished.outcome.value for finished in batch)
    pool.submit(Call("hang"))
    try:
        say(workers=sorted(workers), all=below())
        pool.wait()
    except KeyboardInterrupt:
        say(interrupted=True)
"""

TWO_POOLS = """
handler = lambda number, frame: None
signal.signal(signal.SIGTERM, handler)
before = dict(os.environ)
with RaySession() as session:
    inside = {name for name in os.environ if name not in before}
    results = []
    for _ in range(2):
        with closing(RayPool(Own, workers=1)) as pool:
            results.append(ask(pool, "echo", "done").value)
    still_open = session.ray.is_initialized()
say(results=results, still_open=still_open, open_after=session.ray.is_initialized(), left=below(),
    handler_kept=signal.getsignal(signal.SIGTERM) is handler, environment_kept=dict(os.environ) == before,
    token_in_environment="RAY_AUTH_TOKEN" in inside, usage="RAY_USAGE_STATS_ENABLED" in inside)
"""

LOSES_RAY = """
with closing(RayPool(Own, workers=1)) as pool:
    pool.submit(Call("hang"))
    raylet = next(process.pid for process in psutil.Process().children(recursive=True) if process.name() == "raylet")
    os.kill(raylet, signal.SIGKILL)
    try:
        while True:  # a call that is lost with its worker, then those of workers that cannot be started
            pool.wait()
            pool.submit(Call("hang"))
    except WorkersFailed as error:
        say(failed=str(error))
"""

JOINS = """
with closing(RayPool(Own)) as pool:
    say(workers=pool.workers, result=ask(pool, "echo", "done").value, process=ask(pool, "process").value)
"""


def alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    give_up = time.monotonic() + seconds
    while not true():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True


def start(script: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a driver with ``folder`` as its current and its home folder, and none of our Ray settings."""
    file = folder / "driver.py"
    file.write_text(HEAD + script)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    return subprocess.Popen(
        [sys.executable, str(file)],
        cwd=folder,
        env={**kept, "HOME": str(folder), **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def said(driver: subprocess.Popen[str]) -> dict[str, Any]:
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.startswith("{"):
            heard: dict[str, Any] = json.loads(line)
            return heard
    raise AssertionError(f"the driver said nothing and ended with {driver.wait()}")


@pytest.mark.slow
def test_a_killed_driver_leaves_no_worker(tmp_path: Path) -> None:
    driver = start(HANGS, tmp_path)
    workers = said(driver)["workers"]
    assert all(alive(worker) for worker in workers)
    driver.kill()
    driver.wait()
    assert until(lambda: not any(alive(worker) for worker in workers))


@pytest.mark.slow
def test_an_interrupted_driver_can_tidy_up(tmp_path: Path) -> None:
    driver = start(HANGS, tmp_path)
    heard = said(driver)
    os.killpg(driver.pid, signal.SIGINT)  # as the terminal does: to the driver and what it started
    assert said(driver) == {"interrupted": True}
    assert driver.wait(120) == 0
    assert until(lambda: not any(alive(process) for process in heard["all"]))


@pytest.mark.slow
def test_a_driver_does_not_wait_for_a_ray_that_has_died(tmp_path: Path) -> None:
    quick = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "3", "initial_delay_ms": "500"}
    driver = start(LOSES_RAY, tmp_path, **{f"RAY_health_check_{name}": value for name, value in quick.items()})
    assert "the raylet) has died" in said(driver)["failed"]
    driver.wait(120)


@pytest.mark.slow
def test_pools_share_a_session_which_leaves_the_driver_as_it_was(tmp_path: Path) -> None:
    driver = start(TWO_POOLS, tmp_path)
    assert said(driver) == {
        "results": ["done", "done"],
        "still_open": True,
        "open_after": False,
        "left": [],
        "handler_kept": True,
        "environment_kept": True,
        "token_in_environment": True,
        "usage": True,
    }
    assert driver.wait(120) == 0
    assert not (tmp_path / ".ray" / "auth_token").exists()


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "0123456789abcdef0123456789abcdef"])
def test_joins_the_cluster_that_ray_address_names(tmp_path: Path, token: str | None) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}  # the node has the packages installed
    if token is not None:
        environment |= {"RAY_AUTH_TOKEN": token}
    head_mode = {"RAY_AUTH_MODE": "disabled" if token is None else "token"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--num-cpus=2"]
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, env={**os.environ, **environment, **head_mode}, stdout=log, stderr=log)
    try:
        assert until(lambda: "Ray runtime started" in (tmp_path / "head.log").read_text())
        driver = start(JOINS, tmp_path, RAY_ADDRESS=f"127.0.0.1:{port}", **environment)
        heard = said(driver)
        assert (heard["workers"], heard["result"]) == (2, "done")
        assert driver.wait(120) == 0
        assert until(lambda: not alive(heard["process"]))
        assert head.poll() is None  # the cluster is not ours to stop
    finally:
        head.terminate()
        head.wait(120)


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://10.0.0.1:8265", "10.0.0.1", ":6379", "a:b"])
def test_what_is_not_a_heads_address_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match="expected host:port of the cluster's head .* URLs are for submitting jobs"):
        RaySession()


def test_an_address_where_nobody_listens_is_refused() -> None:
    with socket.socket() as bound:  # but not listening
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"nobody answers at {address}"):
            RaySession(address)
