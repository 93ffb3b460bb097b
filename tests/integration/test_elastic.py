"""Pools that follow the nodes of a real cluster and share it, each in a driver of its own."""

import contextlib
import json
import signal
import subprocess
import sys

import pytest
from faults.places import TESTS, Cluster, environment, new_mark, until, within

pytestmark = pytest.mark.slow
SECONDS = 90.0  # a busy machine takes its time to start processes


class Driver:
    """A driver of an elastic pool on ``cluster``."""

    def __init__(self, cluster, folder):
        self.mark = new_mark("pool")
        self.log = folder / f"{self.mark}.jsonl"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*within(cluster.head.namespace), sys.executable, str(TESTS / "faults" / "pool_driver.py")],
                env=environment(self.mark, RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled"),
                cwd=folder,
                stdout=log,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def said(self):
        """What it said last."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        return json.loads(lines[-1]) if lines else {"workers": 0, "working": 0, "outcomes": {}}

    @property
    def workers(self):
        """How many workers it has, if all of them work."""
        said = self.said
        return said["workers"] if said["workers"] == said["working"] else None

    def kill(self):
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def test_pools_follow_the_nodes_and_share_them(tmp_path):
    with contextlib.closing(Cluster(cpus=2)) as cluster, contextlib.ExitStack() as stack:
        first = Driver(cluster, tmp_path)
        stack.callback(first.kill)
        assert until(lambda: first.workers == 4, SECONDS)

        second = Driver(cluster, tmp_path)
        stack.callback(second.kill)
        assert until(lambda: (first.workers, second.workers) == (2, 2), SECONDS), (first.said, second.said)
        assert set(first.said["outcomes"]) == {"Returned"}  # workers were given back between calls

        second.kill()
        assert until(lambda: first.workers == 4, SECONDS)
        assert set(first.said["outcomes"]) == {"Returned"}

        cluster.second.kill()
        assert until(lambda: first.workers == 2, SECONDS)
        assert first.said["outcomes"]["Lost"] <= 2  # the calls that its workers had

        cluster.start_second()
        assert until(lambda: first.workers == 4, SECONDS)
