"""MAP-Elites (Mouret and Clune 2015, arXiv 1504.04909): the best point of every cell of a grid over the objectives.

The baseline of the paper on natural niches: the grid is laid over the scores of the objectives themselves, each divided
into equal cells from 0 to 1. Objectives that are no rates are scaled to the range that the seeds span. Of two points in
one cell the one with the better weighted mean stays; two parents are drawn in proportion to it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

from evomerge.optimizers.breeding import Breeder
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.preference import Preference
from evomerge.optimizers.steady_state import Pair, SteadyState
from search_spaces.genes import Genome, Vector

CELLS = 10
LEAST_SHARE = 0.01  # of the best number, which every member is drawn by at least
Cell: TypeAlias = tuple[int, ...]


class Elite(NamedTuple):
    """A point, its (objectives,) values and its tie-break."""

    genome: Genome
    values: Vector
    tie_break: float


class MapElites(SteadyState):
    """See the module's text."""

    def __init__(self, breeder: Breeder, *, weights: Vector, seed: int, cells: int = CELLS, warm_up: int = 0) -> None:
        """``weights``: (objectives,) importance; ``cells``: per objective; ``warm_up``: points founded first."""
        super().__init__(breeder, seed=seed, warm_up=warm_up)
        self._preference = Preference(weights)
        self._cells = cells
        self.elites: list[Elite] = []
        self._best = 0.0  # the largest number of a member
        self._places: dict[Cell, int] = {}  # where in `elites` the best point of a cell is

    def _take(self, observation: Observation) -> None:
        if observation.values is None or observation.estimated:
            return
        if observation.seed:
            self._see_seed(observation.values)
        if observation.genome is not None:
            self._join(Elite(observation.genome, observation.values, observation.tie_break))

    def _see_seed(self, values: Vector) -> None:
        """Widen the scale; if it changes, every member finds its cell anew."""
        before = self._preference.scale
        self._preference.see_seed(values)
        if not np.array_equal(before, self._preference.scale):
            elites, self.elites, self._places, self._best = self.elites, [], {}, 0.0
            for elite in elites:
                self._join(elite)

    def _join(self, elite: Elite) -> None:
        self._best = max(self._best, self._number(elite))
        place = self._places.setdefault(self._cell(elite.values), len(self.elites))
        if place == len(self.elites):
            self.elites.append(elite)
        elif self._number(elite) > self._number(self.elites[place]):
            self.elites[place] = elite

    def _cell(self, values: Vector) -> Cell:
        scaled = np.clip(self._preference.scaled(values), 0.0, 1.0)
        return tuple(np.minimum((scaled * self._cells).astype(int), self._cells - 1).tolist())

    def _number(self, elite: Elite) -> float:
        return self._preference.scalar(elite.values, elite.tie_break)

    def _pair(self) -> Pair | None:
        count = len(self.elites)
        if count < 2:
            return None
        one = other = self._draw()
        while other == one:
            other = self._draw()
        return self.elites[one].genome, self.elites[other].genome

    def _draw(self) -> int:
        """Draw a member in proportion to its number by rejection, whatever the size of the archive."""
        while True:
            place = int(self._rng.integers(len(self.elites)))
            if self._rng.random() * self._best <= max(self._number(self.elites[place]), LEAST_SHARE * self._best):
                return place
