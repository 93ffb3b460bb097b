"""What a driver costs per candidate, and whether that grows: with the record, with the number of workers.

Question: does a driver keep up with 1,000 workers and 100,000 candidates, and what would limit a cluster of 1,000 GPUs?

Set-up: simulated evaluations (tests/fakes.py) of 40 documents and two objectives, one driver with a SQLite record.
`long`: 100,000 candidates on a pool that answers at once, so that all time is the driver's, fakes included: CPU time
and memory by tenths of the search, then `evomerge status` and `evomerge front` as commands, wall time. `threads`:
1,000 in-process workers whose evaluations take 2 s. `actors`: 50 Ray actors (20 to a CPU) whose evaluations take 0.5
s. For both the CPU time of the driver's process per candidate, and how busy the workers were. `waits`: what one Ray
call costs the driver while 50 to 1,000 others are out: submitted, waited for among all, fetched.

Run: `.venv/bin/python benchmarks/scale.py [--candidates 100000] [--only long]` (about ten minutes). Writes
results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import RESULTS, ROOT, save

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT))  # else tests/evomerge hides evomerge

from fake_search import started
from fakes import FakeSpec, search_file

from cluster.in_process import InProcessPool
from cluster.pool import Call, Finished, Pool, Returned
from evomerge.watcher import Silent

THREADS, THREAD_SECONDS, THREAD_CANDIDATES = 1000, 2.0, 6000
ACTORS, ACTOR_SECONDS, ACTOR_CANDIDATES = 50, 0.5, 2000
COMMANDS = ("status", "front")
OUT, CALLS = (50, 200, 1000), 200


class Marks(Silent):
    """Notes CPU time and memory as candidates come back."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.bytes: list[int] = []
        self._process = psutil.Process()

    def evaluated(self, candidate: Any, split: str) -> None:
        """Note them."""
        self.cpu.append(time.process_time())
        if len(self.cpu) % 100 == 0:
            self.bytes.append(self._process.memory_info().rss)


class AtOnce:
    """A pool of one worker that has always just finished."""

    workers = 1

    def __init__(self, worker: Any) -> None:
        self._worker, self._out, self._tickets = worker, [], 0

    @property
    def free(self) -> int:
        """One, unless a call is out."""
        return 1 - len(self._out)

    def submit(self, call: Call) -> int:
        """Perform ``call``."""
        self._out.append(Finished(self._tickets, Returned(getattr(self._worker, call.method)(*call.arguments))))
        self._tickets += 1
        return self._tickets - 1

    def wait(self, timeout_seconds: float | None = None) -> list[Finished]:
        """Return what is there."""
        out, self._out = self._out, []
        return out

    def need(self, calls: int | None) -> None:
        """It has one worker."""

    def close(self) -> None:
        """Nothing to close."""


def long(folder: Path, candidates: int) -> dict[str, Any]:
    """CPU milliseconds per candidate and memory by tenths of a long search; then the commands that read it."""
    file = search_file(folder, optimizer={"kind": "random"}, budget={"evaluations": candidates})
    marks = Marks()
    began, before = time.perf_counter(), psutil.Process().memory_info().rss
    with started(file, watcher=marks, pool=AtOnce(FakeSpec()())) as search:
        search.run()
    seconds = time.perf_counter() - began
    began = time.process_time()
    with started(file, pool=AtOnce(FakeSpec()())):
        replay = time.process_time() - began
    steps = 1e3 * np.diff(marks.cpu)
    memory = [float(part[-1]) / 2**20 for part in np.array_split(marks.bytes, 10)]
    return {
        "candidates": candidates,
        "seconds": seconds,
        "milliseconds_by_tenth": [float(part.mean()) for part in np.array_split(steps, 10)],
        "milliseconds_99th_percentile": float(np.quantile(steps, 0.99)),
        "last_tenth_over_first": float(steps[-len(steps) // 10 :].mean() / steps[: len(steps) // 10].mean()),
        "memory_mib_by_tenth": memory,
        "memory_bytes_per_candidate": (marks.bytes[-1] - before) / candidates,
        "record_bytes_per_candidate": Path(file.storage.removeprefix("sqlite:///")).stat().st_size / candidates,
        "replay_cpu_seconds": replay,
        **{f"{command}_seconds": command_seconds(command, file.storage) for command in COMMANDS},
    }


def command_seconds(command: str, storage: str) -> float:
    """Wall time of ``evomerge COMMAND``, the best of three."""
    line = [sys.executable, "-m", "evomerge.cli", command, "fake", "--storage", storage]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(line, check=True, capture_output=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        times.append(time.perf_counter() - began)
    return min(times)


def wide(folder: Path, pool: Pool, candidates: int, seconds: float) -> dict[str, Any]:
    """The driver's CPU time per candidate with many workers, and how busy they were in the steady state."""
    file = search_file(folder, optimizer={"kind": "random"}, budget={"evaluations": candidates})
    marks = Marks()
    times: list[float] = []
    with started(file, watcher=marks, pool=pool) as search:
        note = marks.evaluated

        def both(candidate: Any, split: str) -> None:
            times.append(time.perf_counter())
            note(candidate, split)

        marks.evaluated = both  # type: ignore[method-assign]
        search.run()
    first, last = pool.workers, len(times) - pool.workers  # all have begun; none is idle for want of budget
    rate = (last - first) / (times[last] - times[first])
    cpu = 1e3 * (marks.cpu[last] - marks.cpu[first]) / (last - first)
    return {
        "workers": pool.workers,
        "candidates": candidates,
        "seconds_per_evaluation": seconds,
        "driver_cpu_milliseconds": cpu,
        "candidates_per_second": rate,
        "busy_share": rate * seconds / pool.workers,
        "driver_memory_mib": marks.bytes[-1] / 2**20,
    }


def threads(folder: Path) -> dict[str, Any]:
    """1,000 workers in this process."""
    pool = InProcessPool(FakeSpec(seconds=THREAD_SECONDS), workers=THREADS)
    return wide(folder, pool, THREAD_CANDIDATES, THREAD_SECONDS)


def actors(folder: Path) -> dict[str, Any]:
    """50 processes of a private Ray cluster."""
    from cluster.ray_pool import RayPool
    from cluster.ray_session import RaySession

    with RaySession("local", cpus=ACTORS // 20 + 1):
        pool = RayPool(FakeSpec(seconds=ACTOR_SECONDS), workers=ACTORS, cpus_per_worker=0.05)
        with closing(pool):
            return wide(folder, pool, ACTOR_CANDIDATES, ACTOR_SECONDS)


def waits(_folder: Path) -> dict[str, Any]:
    """CPU milliseconds of the driver for one call while others are out, by how many."""
    from cluster.ray_session import RaySession

    with RaySession("local", cpus=1) as session:
        ray = session.ray

        @ray.remote(num_cpus=0)
        class Worker:
            def hang(self) -> None:
                time.sleep(3600)

            def answer(self) -> bytes:
                return bytes(1000)

        hanging, quick = Worker.remote(), Worker.remote()
        ray.get(quick.answer.remote())
        out = [hanging.hang.remote() for _ in range(max(OUT))]
        costs = {}
        for count in OUT:
            began = time.process_time()
            for _ in range(CALLS):
                call = quick.answer.remote()
                ray.wait([*out[:count], call], num_returns=1)
                ray.get(call)
            costs[str(count)] = 1e3 * (time.process_time() - began) / CALLS
        return {"milliseconds_by_calls_out": costs}


def main() -> None:
    """Measure all, or one, keeping what is known of the others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--only", choices=("long", "threads", "actors", "waits"))
    arguments = parser.parse_args()
    path = RESULTS / "scale.json"
    result: dict[str, Any] = json.loads(path.read_text()) if arguments.only and path.exists() else {}
    result.pop("machine", None)
    for name, measure in (
        ("long", lambda folder: long(folder, arguments.candidates)),
        ("threads", threads),
        ("actors", actors),
        ("waits", waits),
    ):
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                result[name] = measure(Path(folder))
            print(name, result[name], flush=True)
    save("scale", result)


if __name__ == "__main__":
    main()
