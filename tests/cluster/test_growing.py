"""Pools on a cluster of several nodes: they grow with it, shrink with it, and share it. Real raylets, one machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import json, subprocess, sys, time
from contextlib import closing
from cluster import ray_pool
from cluster.pool import Call, Lost, Returned
from cluster.ray_pool import RayPool
from cluster.testing import Probe
ray_pool.LOOK_EVERY_SECONDS = 0.5

def work_until(pool, workers):
    "Keep every worker busy until there are so many; every call comes back."
    give_up = time.monotonic() + 120
    while pool.workers != workers or pool.free == workers:
        assert time.monotonic() < give_up, (pool.workers, workers)
        while pool.free:
            pool.submit(Call("echo", (1,)))
        for _, outcome in pool.wait(1.0):
            assert isinstance(outcome, Returned | Lost), outcome
        time.sleep(0.02)
    return pool.workers
"""
OTHER = """
with closing(RayPool(Probe, address=sys.argv[1])) as pool:
    print(work_until(pool, 2), flush=True)
    sys.stdin.readline()
"""
STORY = """
from ray.cluster_utils import Cluster
def node(cluster):
    return cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False})
seen = {}
try:
    with closing(RayPool(Probe, address=cluster.address)) as pool:
        seen["alone"] = work_until(pool, 2)
        second = node(cluster)
        seen["a node joined"] = work_until(pool, 4)
        other = subprocess.Popen([sys.executable, sys.argv[1], cluster.address], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True)
        seen["beside another pool"] = work_until(pool, 2)
        while not (line := __import__("select").select([other.stdout], [], [], 0.2)[0]):
            work_until(pool, pool.workers)
        seen["the other pool"] = int(other.stdout.readline())
        other.communicate("")
        seen["alone again"] = work_until(pool, 4)
        cluster.remove_node(second)
        seen["a node left"] = work_until(pool, 2)
finally:
    cluster.shutdown()
print("STORY" + json.dumps(seen))
"""


def test_a_pool_follows_its_cluster_and_shares_it(tmp_path):
    (tmp_path / "story.py").write_text(HEAD + STORY)
    (tmp_path / "other.py").write_text(HEAD + OTHER)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**kept, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef"}
    done = subprocess.run(
        [sys.executable, tmp_path / "story.py", tmp_path / "other.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.partition("STORY")[2]) == {
        "alone": 2,
        "a node joined": 4,
        "beside another pool": 2,
        "the other pool": 2,
        "alone again": 4,
        "a node left": 2,
    }
