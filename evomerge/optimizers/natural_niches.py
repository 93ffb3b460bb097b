"""Natural niches: M2N2 (Abrantes, Lange and Tang 2025, arXiv 2508.16204), steady state and asynchronous.

Members of the archive share the documents that they solve, so that one that solves what few others do is kept
(`evomerge.archives.niches`). The first parent is drawn in proportion to fitness, the second to how much it would add
to the first. Points that could not be measured, or were only estimated, never join.

Where the published code would divide by zero: if nobody is attractive, the second parent is drawn by fitness among
the others; if nobody has fitness, evenly.
"""

from __future__ import annotations

import numpy as np

from evomerge.archives.niches import NicheArchive
from evomerge.optimizers.breeding import Breeder
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.steady_state import Pair, SteadyState
from search_spaces.genes import Vector

ARCHIVE = 20


class NaturalNiches(SteadyState):
    """See the module's text."""

    needs_documents = True

    def __init__(
        self,
        breeder: Breeder,
        *,
        weights: Vector,
        seed: int,
        archive: int = ARCHIVE,
        alpha: float = 1.0,
        attraction: bool = True,
        warm_up: int = 0,
    ) -> None:
        """Start empty.

        Args:
            weights: (objectives,) importance of each objective.
            archive: members kept.
            alpha: how strongly members compete for documents; 0 is a plain genetic algorithm's fitness.
            attraction: whether the second parent is drawn by attraction, else by fitness like the first.
            warm_up: points that are founded, not bred, before parents are drawn from the archive.
        """
        super().__init__(breeder, seed=seed, warm_up=warm_up)
        self.archive = NicheArchive(weights, size=archive, alpha=alpha)
        self._attraction = attraction

    def _take(self, observation: Observation) -> None:
        if observation.genome is None or observation.values is None or observation.estimated:
            return
        if observation.documents is None:
            raise ValueError("natural niches live on the scores of single documents; the observation has none")
        self.archive.add(observation.genome, observation.documents)

    def _pair(self) -> Pair | None:
        if len(self.archive) < 2:
            return None
        fitness = self.archive.fitness
        first = self._draw(fitness)
        second = self._mate(first, fitness) if self._attraction else self._draw(fitness)
        return self.archive.genomes[first], self.archive.genomes[second]

    def _mate(self, first: int, fitness: Vector) -> int:
        attraction = self.archive.attraction(first)
        if attraction.any():
            return self._draw(attraction)
        others = np.delete(np.arange(len(fitness)), first)
        return int(others[self._draw(fitness[others])])

    def _draw(self, weights: Vector) -> int:
        total = weights.sum()
        return int(self._rng.choice(len(weights), p=weights / total if total > 0.0 else None))
