"""NSGA-III (Deb and Jain 2014) in steady state, for the front of three and more objectives."""

from __future__ import annotations

import numpy as np

from evomerge.archives.pareto import Positions
from evomerge.optimizers.evolution import POPULATION, Evolution
from evomerge.optimizers.niching import associate, directions
from search_spaces.genes import Genes, Vector


class Nsga3(Evolution):
    """A population in which members that few share a reference direction with are lonely."""

    def __init__(self, genes: Genes, *, objectives: int, seed: int, population: int | None = None) -> None:
        """``population``: members kept, 30 if None; there are as many reference directions, or a few less."""
        self._rays = directions(objectives, population or POPULATION)
        super().__init__(genes, self._niche_loneliness, seed=seed, population=population)

    def _niche_loneliness(self, values: Vector, fronts: Positions) -> Vector:
        """Minus the number of members of the niche on this or a better front; of equals, the nearest to its direction
        is the loneliest."""
        direction, distance = associate(values, fronts, self._rays)
        shared = (direction[:, None] == direction[None, :]) & (fronts[None, :] <= fronts[:, None])
        return np.asarray(-shared.sum(axis=1) - distance / (1.0 + distance))
