"""Several GPUs for each worker, in a driver of its own: Ray counts GPUs that are not there if it is told to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVER = """
import json, sys
from contextlib import closing
import ray
from cluster.pool import Call
from cluster.ray_pool import RayPool
from cluster.testing import Probe

ray.init(address="local", num_cpus=4, num_gpus=5, include_dashboard=False, log_to_driver=False)
with closing(RayPool(Probe, gpus_per_worker=2.0)) as pool:
    seen = {}
    while len(seen) < pool.workers:
        tickets = [pool.submit(Call(method, ("CUDA_VISIBLE_DEVICES",))) for method in ("variable",) * pool.free]
        while batch := pool.wait():
            seen.update((finished.outcome.value, 1) for finished in batch)
    workers = pool.workers
try:
    RayPool(Probe, gpus_per_worker=6)
except ValueError as error:
    refused = str(error)
sys.stdout.write(json.dumps({"workers": workers, "seen": sorted(seen), "refused": refused}))
ray.shutdown()
"""


@pytest.mark.slow
def test_every_worker_sees_the_gpus_that_it_reserves_and_no_others(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["workers"] == 2, "five GPUs have room for two workers with two each"
    numbers = [number for seen in said["seen"] for number in seen.split(",")]
    assert len(said["seen"]) == 2 and len(numbers) == len(set(numbers)) == 4
    assert "no node of the cluster has 1 CPUs and 6 GPUs" in said["refused"]
