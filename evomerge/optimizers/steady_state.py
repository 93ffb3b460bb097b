"""What natural niches and MAP-Elites share: one child at a time, of two members, and never the same point twice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from evomerge.optimizers.breeding import Breeder, Offspring
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.novelty import Proposed
from search_spaces.genes import Genome

MOST_TRIES = 100  # of making a child that was not proposed before
Pair = tuple[Genome, Genome]


class SteadyState(ABC):
    """Asks and tells of an optimizer that breeds from an archive; what the archive is, a subclass says."""

    def __init__(self, breeder: Breeder, *, seed: int, warm_up: int) -> None:
        """``warm_up``: points that are founded, not bred, before parents are drawn from the archive."""
        self._breeder = breeder
        self._rng = np.random.default_rng(seed)
        self._warm_up = warm_up
        self._proposed = Proposed()
        self._parents: dict[Genome, tuple[Genome, ...]] = {}  # of what is out

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes, none of which was asked for or given before."""
        return [self._propose() for _ in range(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Let each measured point compete for a place; failures and estimates do not."""
        for observation in observations:
            if observation.genome is not None:
                self._parents.pop(observation.genome, None)
                if observation.seed:
                    self._proposed.add(observation.genome)
            self._take(observation)

    def parents_of(self, genome: Genome) -> tuple[Genome, ...]:
        """Return what ``genome``, asked for and not told yet, was made of."""
        return self._parents.get(genome, ())

    @abstractmethod
    def _take(self, observation: Observation) -> None:
        """Let one observation change the archive, or not."""

    @abstractmethod
    def _pair(self) -> Pair | None:
        """Draw two parents; None while there are not two members."""

    def _propose(self) -> Genome:
        offspring = self._offspring()
        for _ in range(MOST_TRIES):
            if self._proposed.claim(offspring.genome):
                break
            offspring = self._offspring()
        self._parents[offspring.genome] = offspring.parents
        return offspring.genome

    def _offspring(self) -> Offspring:
        pair = None if self._warm_up > 0 else self._pair()
        if pair is None:
            self._warm_up -= 1
            return self._breeder.found(self._rng)
        return Offspring(self._breeder.cross(*pair, self._rng), pair)
