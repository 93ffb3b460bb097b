"""What optimizers, archives and the record cost the driver per candidate, and whether that grows.

Question: how long do ask and tell take with 100 and 2,000 genes, and what do fronts of 100,000 points and a record of
thousands of candidates cost?

Set-up: two quadratic bowls, one CPU thread, CPU time. `ask and tell`: median, 99th percentile and maximum over 600
evaluations (300 with 2,000 genes; TPE and the Gaussian process fewer, see the table), without the first ten, which
import. `front`: moocore over 100,000 points at once, and `archives.pareto.Front` point by point, for points drawn
evenly (a small front) and from a shell (a front of thousands; only the first 20,000 one by one). `driver`: CPU time
per candidate of a whole search over a fake worker, early and late in a record of 4,000; flat means a ratio near 1.

Run: `.venv/bin/python benchmarks/ask_tell.py` (about four minutes). Writes results/ask_tell.json.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import simulated
from common import ROOT, save

from evomerge.archives import pareto
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import AlgorithmKind, algorithm

KINDS: tuple[AlgorithmKind, ...] = ("cma_es", "nsga2", "random", "sobol", "tpe", "gp")
COUNTS = {("tpe", 100): 60, ("gp", 100): 30}  # what is not here: 600 with 100 genes, 300 with 2,000
LEFT_OUT = {("tpe", 2000), ("gp", 2000)}  # not for so many genes
FIRST = 10
POINTS, ONE_BY_ONE = 100_000, 20_000
CANDIDATES = 4000


def ask_and_tell(kind: AlgorithmKind, dimensions: int) -> dict[str, Any]:
    """Percentiles of the CPU milliseconds of one ask and its tell."""
    problem = simulated.two_bowls(0, dimensions)
    optimizer = make_optimizer(algorithm(kind, seed=0), Setting(problem.genes, np.ones(2), 1000))
    count = COUNTS.get((kind, dimensions), 600 if dimensions <= 100 else 300)
    spent = []
    for _ in range(count):
        started = time.process_time()
        genome = optimizer.ask(1)[0]
        asked = time.process_time() - started
        values = problem.function(genome.values)
        started = time.process_time()
        optimizer.tell([Observation(genome, values)])
        spent.append(1e3 * (asked + time.process_time() - started))
    kept = np.array(spent[FIRST:])
    row = {"optimizer": kind, "genes": dimensions, "evaluations": count, "p50_ms": float(np.median(kept)),
           "p99_ms": float(np.quantile(kept, 0.99)), "max_ms": float(kept.max())}  # fmt: skip
    numbers = "  ".join(f"{name} {row[f'{name}_ms']:.2f}" for name in ("p50", "p99", "max"))
    print(f"{kind:8} {dimensions:5} genes  {numbers} ms", flush=True)
    return row


def fronts(objectives: int, *, shell: bool) -> dict[str, Any]:
    """CPU seconds over 100,000 points: at once, their hypervolume, and one by one."""
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(POINTS, objectives))
    if shell:
        points = np.abs(rng.standard_normal((POINTS, objectives)))
        points *= (1.0 - 1e-3 * rng.uniform(size=(POINTS, 1))) / np.linalg.norm(points, axis=1, keepdims=True)
    started = time.process_time()
    kept = points[pareto.front(points)]
    at_once = time.process_time() - started
    started = time.process_time()
    volume = pareto.hypervolume(kept, np.zeros(objectives))
    measuring = time.process_time() - started
    growing, few = pareto.Front(objectives), points[:ONE_BY_ONE] if shell else points
    started = time.process_time()
    for point in few:
        growing.add(point)
    row = {"objectives": objectives, "points": POINTS, "front": len(kept), "at_once_seconds": at_once,
           "hypervolume": volume, "hypervolume_seconds": measuring,
           "one_by_one_microseconds_each": 1e6 * (time.process_time() - started) / len(few),
           "one_by_one_front": len(growing)}  # fmt: skip
    print(f"{objectives} objectives, front of {len(kept)} in {POINTS}: at once {at_once:.2f} s, hypervolume "
          f"{measuring:.2f} s, one by one {row['one_by_one_microseconds_each']:.0f} us each", flush=True)  # fmt: skip
    return row


class Marks:
    """A listener that notes CPU time as candidates come back."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def phase(self, name: str, total: int, done: int) -> None:
        """Ignore it."""

    def evaluated(self, candidate: Any, split: str) -> None:
        """Note the time."""
        self.at.append(time.process_time())


def driver() -> dict[str, Any]:
    """CPU milliseconds per candidate of the search's loop with its record, over its first and its last thousand."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fakes import FakeSpec, UnequalWorkers, problem, search_file

    from evomerge.dispatch import Dispatcher
    from evomerge.search import Search
    from evomerge.store import Store

    with tempfile.TemporaryDirectory() as folder:
        budget = {"evaluations": CANDIDATES, "stall": CANDIDATES, "plateau": CANDIDATES}
        file = search_file(Path(folder), optimizer={"kind": "random"}, budget=budget)
        this, marks, store = problem(file), Marks(), Store(file.storage, create=True)
        record = store.create(file.name, file=file.model_dump(mode="json"), plan=this.plan())
        optimizer = make_optimizer(file.optimizer, this.setting())  # type: ignore[arg-type]
        pool = UnequalWorkers(FakeSpec()(), 4)
        Search(this, record, optimizer, Dispatcher(pool, timeout_seconds=60.0), marks).run()
        store.close()
    steps = 1e3 * np.diff(marks.at)
    early, late = float(np.median(steps[100:1000])), float(np.median(steps[-1000:]))
    print(f"driver: {early:.2f} ms a candidate early, {late:.2f} ms late, ratio {late / early:.2f}", flush=True)
    return {"candidates": CANDIDATES, "early_ms": early, "late_ms": late, "ratio": late / early}


def main() -> None:
    """Measure all three."""
    rows = [ask_and_tell(kind, n) for n in (100, 2000) for kind in KINDS if (kind, n) not in LEFT_OUT]
    archives = [fronts(objectives, shell=shell) for objectives in (2, 3) for shell in (False, True)]
    save("ask_tell", {"ask_and_tell": rows, "fronts": archives, "driver": driver()})


if __name__ == "__main__":
    main()
