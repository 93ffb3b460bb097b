"""NSGA-II (Deb, Pratap, Agarwal and Meyarivan 2002) in steady state, for the whole front of several objectives."""

from __future__ import annotations

import numpy as np

from evomerge.archives import pareto
from evomerge.archives.pareto import Positions
from evomerge.optimizers.evolution import Evolution
from search_spaces.genes import Genes, Vector


class Nsga2(Evolution):
    """A population in which members far from their neighbours on the front are lonely."""

    def __init__(self, genes: Genes, *, seed: int, population: int | None = None) -> None:
        """``population``: members kept, 30 if None."""
        super().__init__(genes, crowding_by_front, seed=seed, population=population)


def crowding_by_front(values: Vector, fronts: Positions) -> Vector:
    """Return (members,) crowding distances, each among the members of its own front."""
    distances = np.zeros(len(values))
    for front in np.unique(fronts):
        rows = np.flatnonzero(fronts == front)
        distances[rows] = pareto.crowding(values[rows])
    return distances
