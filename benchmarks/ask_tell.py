"""What optimizers and archives cost the driver per candidate.

Question: do CMA-ES and natural niches stay under 5 ms at 100 genes and under 50 ms at 2,000, natural niches also on
mosaics of as many tiles as a 7B model has, and do fronts and maps of 100,000 points stay usable?

Set-up: one process, CPU time of ask plus tell: mean, median, 99th percentile and maximum over 600 evaluations (300 with
2,000 genes; TPE and the Gaussian process fewer, see the table), without the first ten, which import. `genes`: two
quadratic bowls. `mosaics`: five sources, two chromosomes, random inner products of 1,000 and of 100,000 tiles, 1,319
random binary documents. `map_elites`: 400 x 400 cells filled until 100,000 are occupied. `front`: moocore over 100,000
points at once, and `archives.pareto.Front` point by point, for points drawn evenly (a small front) and from a shell (a
front of thousands; only the first 20,000 one by one).

Run: `.venv/bin/python benchmarks/ask_tell.py` (about three minutes). Writes results/ask_tell.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import simulated
from common import save

from evomerge.archives import pareto
from evomerge.optimizers.breeding import GeneBreeder
from evomerge.optimizers.contract import Observation, Optimizer
from evomerge.optimizers.map_elites import MapElites
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import AlgorithmKind, algorithm
from search_spaces.genes import Genome
from search_spaces.mosaic import MosaicAlgebra
from search_spaces.tiles import TileGrid

KINDS: tuple[AlgorithmKind, ...] = (
    "cma_es", "nsga2", "natural_niches", "map_elites", "random", "sobol", "tpe", "gp",
)  # fmt: skip
COUNTS = {("tpe", 100): 60, ("gp", 100): 30}  # what is not here: 600 with 100 genes, 300 with 2,000
LEFT_OUT = {("tpe", 2000), ("gp", 2000)}  # not for so many genes
FIRST = 10
POINTS, ONE_BY_ONE = 100_000, 20_000
DOCUMENTS = 1_319
CELLS, OCCUPIED = 400, 100_000


class Times:
    """CPU milliseconds of ask and tell, evaluation by evaluation."""

    def __init__(self, optimizer: Optimizer, observe: Callable[[Genome], Observation], count: int) -> None:
        self.optimizer, self.spent = optimizer, []
        for _ in range(count):
            started = time.process_time()
            genome = optimizer.ask(1)[0]
            asked = time.process_time() - started
            observation = observe(genome)
            started = time.process_time()
            optimizer.tell([observation])
            self.spent.append(1e3 * (asked + time.process_time() - started))

    def row(self, name: str) -> dict[str, Any]:
        """Percentiles, printed and returned."""
        kept = np.array(self.spent[FIRST:])
        row = {"case": name, "evaluations": len(self.spent), "mean_ms": float(kept.mean()),
               "p50_ms": float(np.median(kept)), "p99_ms": float(np.quantile(kept, 0.99)),
               "max_ms": float(kept.max())}  # fmt: skip
        numbers = "  ".join(f"{key} {row[f'{key}_ms']:.2f}" for key in ("mean", "p50", "p99", "max"))
        print(f"{name:40} {numbers} ms", flush=True)
        return row


def on_genes(kind: AlgorithmKind, dimensions: int) -> dict[str, Any]:
    """One optimizer on two bowls."""
    problem = simulated.two_bowls(0, dimensions)
    optimizer = make_optimizer(algorithm(kind, seed=0), Setting(problem.genes, np.ones(2), 1000))
    count = COUNTS.get((kind, dimensions), 600 if dimensions <= 100 else 300)

    def observe(genome: Genome) -> Observation:
        return simulated.observe(optimizer, problem, genome, problem.function(genome.values))

    return Times(optimizer, observe, count).row(f"{kind}, {dimensions} genes")


def on_mosaics(tiles: int) -> dict[str, Any]:
    """Natural niches on mosaics of five random sources, a third of the tiles in a chromosome of their own."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(tiles, 5, 8)) * np.array([1.0, 0.1, 0.1, 0.1, 0.1])[:, None]
    sizes = {"attention": tiles // 3 * 16, "rest": (tiles - tiles // 3) * 16}
    grid = TileGrid.of(sizes, 16, [("attention", ("attention",)), ("rest", ("*",))])
    mosaics = MosaicAlgebra(grid, basis @ basis.transpose(0, 2, 1))
    setting = Setting(simulated.genes(1), np.ones(1), 1000, mosaics=mosaics)

    def observe(genome: Genome) -> Observation:
        right = (rng.random(DOCUMENTS) < rng.random()).astype(np.float64)
        return Observation(genome, np.array([right.mean()]), documents=(right,))

    optimizer = make_optimizer(algorithm("natural_niches"), setting)
    return Times(optimizer, observe, 600).row(f"natural_niches, mosaics of {tiles} tiles")


def on_a_full_map() -> dict[str, Any]:
    """MAP-Elites with so many occupied cells."""
    rng, few = np.random.default_rng(2), simulated.genes(10)
    optimizer = MapElites(GeneBreeder(few), weights=np.ones(2), seed=0, cells=CELLS)
    while len(optimizer.elites) < OCCUPIED:
        optimizer.tell([Observation(Genome(rng.random(10)), rng.random(2)) for _ in range(10_000)])
    times = Times(optimizer, lambda genome: Observation(genome, rng.random(2)), 600)
    return times.row(f"map_elites, {OCCUPIED} occupied cells")


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


def main() -> None:
    """Measure ask and tell, then fronts."""
    rows = [on_genes(kind, n) for n in (100, 2000) for kind in KINDS if (kind, n) not in LEFT_OUT]
    rows += [*(on_mosaics(tiles) for tiles in (1_000, 100_000)), on_a_full_map()]
    archives = [fronts(objectives, shell=shell) for objectives in (2, 3) for shell in (False, True)]
    save("ask_tell", {"ask_and_tell": rows, "fronts": archives})


if __name__ == "__main__":
    main()
