"""What optimizers and archives cost by themselves: CPU milliseconds of ask plus tell, per evaluation.

Question: do CMA-ES and natural niches stay under 5 ms at 100 genes and under 50 ms at 2,000, natural niches also on
mosaics of as many tiles as a 7B model has, and does MAP-Elites stay usable with 100,000 cells?

Set-up: one process, values and 1,319 binary scores of documents drawn at random (nothing is evaluated). Genes: 500
evaluations each. Mosaics: five sources, two chromosomes, random inner products of 1,000 and of 100,000 tiles, 500
evaluations. MAP-Elites: two objectives, 400 x 400 cells filled until 100,000 are occupied, then 500 evaluations of ten
genes. Medians would hide the updates of CMA-ES's distribution, so means are shown.

Run: `.venv/bin/python benchmarks/optimizer_cost.py` (a minute). Writes results/optimizer_cost.json.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from common import save

from evomerge.optimizers.breeding import GeneBreeder
from evomerge.optimizers.contract import Observation, Optimizer
from evomerge.optimizers.map_elites import MapElites
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import algorithm
from search_spaces.genes import Gene, Genes, Genome
from search_spaces.mosaic import Mosaic, MosaicAlgebra
from search_spaces.tiles import TileGrid

EVALUATIONS, DOCUMENTS = 500, 1_319
WEIGHTS = np.ones(1)


def genes(count: int) -> Genes:
    """Return ``count`` genes."""
    return Genes(tuple(Gene(f"g{i}", 0.0, 1.5, 0.5) for i in range(count)))


def algebra(tiles: int) -> MosaicAlgebra:
    """Return the algebra of five random sources in so many tiles, a third of them in a chromosome of their own."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(tiles, 5, 8)) * np.array([1.0, 0.1, 0.1, 0.1, 0.1])[:, None]
    sizes = {"attention": tiles // 3 * 16, "rest": (tiles - tiles // 3) * 16}
    grid = TileGrid.of(sizes, 16, [("attention", ("attention",)), ("rest", ("*",))])
    return MosaicAlgebra(grid, basis @ basis.transpose(0, 2, 1))


def cost(optimizer: Optimizer) -> dict[str, Any]:
    """Drive ``optimizer``; return mean CPU milliseconds of ask plus tell, over all evaluations and the last 100."""
    rng, spent = np.random.default_rng(1), []
    genome = None
    for _ in range(EVALUATIONS):
        right = (rng.random(DOCUMENTS) < rng.random()).astype(np.float64)
        began = time.process_time()
        (genome,) = optimizer.ask(1)
        optimizer.tell([Observation(genome, np.array([right.mean()]), documents=(right,))])
        spent.append(1e3 * (time.process_time() - began))
    found = {"ms": float(np.mean(spent)), "ms_of_last_100": float(np.mean(spent[-100:]))}
    if isinstance(genome, Mosaic):
        found["segments"] = sum(len(each.coefficients) for each in genome.segments)
    return found


def full_map(occupied: int) -> dict[str, Any]:
    """Fill ``occupied`` cells, then measure."""
    rng, few = np.random.default_rng(2), genes(10)
    optimizer = MapElites(GeneBreeder(few), weights=np.ones(2), seed=0, cells=400)
    began = time.process_time()
    while len(optimizer.elites) < occupied:
        optimizer.tell([Observation(Genome(rng.random(10)), rng.random(2)) for _ in range(10_000)])
    filling, began = time.process_time() - began, time.process_time()
    for _ in range(EVALUATIONS):
        (genome,) = optimizer.ask(1)
        optimizer.tell([Observation(genome, rng.random(2))])
    return {"ms": 1e3 * (time.process_time() - began) / EVALUATIONS, "fill_seconds": filling}


def main() -> None:
    """Measure everything, print a table, write the results."""
    found = {}
    for kind in ("cma_es", "natural_niches", "map_elites"):
        for count in (100, 2_000):
            found[f"{kind}, {count} genes"] = cost(
                make_optimizer(algorithm(kind), Setting(genes(count), WEIGHTS, EVALUATIONS))
            )
    for tiles in (1_000, 100_000):
        setting = Setting(genes(1), WEIGHTS, EVALUATIONS, mosaics=algebra(tiles))
        found[f"natural_niches, mosaics of {tiles} tiles"] = cost(make_optimizer(algorithm("natural_niches"), setting))
    found["map_elites, 100000 occupied cells"] = full_map(100_000)
    print("| optimizer | CPU ms an evaluation | last 100 |", "|---|---|---|", sep="\n")
    for name, row in found.items():
        print(f"| {name} | {row['ms']:.2f} | {row.get('ms_of_last_100', row['ms']):.2f} |")
    save("optimizer_cost", {"evaluations": EVALUATIONS, "documents": DOCUMENTS, "cost": found})


if __name__ == "__main__":
    main()
