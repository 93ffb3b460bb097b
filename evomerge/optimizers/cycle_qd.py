"""CycleQD (Kuroki et al. 2025, ICLR, arXiv 2410.14735): quality-diversity over tasks, for a portfolio of models.

Each objective has an archive (archives/portfolio.py) and is the quality in turn, one ask after another. Parents come
from the archive of the objective whose turn it is, the more often the better they are in all objectives; a child is
crossed from both, mutated, and offered to all archives.

The published mutation scales the singular values of the task vector of the expert for the quality task by random
factors up to a tenth. Gene space has no singular values: here each gene moves by a random factor, up to a tenth, of
its value in the seed that is best at the quality task, which is that expert's task vector by layer and tensor group.
The published crossover averages both parents, which draws a population together: on three skills of six genes
(tests, 400 evaluations, seeds 10 and 11) the elites' summed quality was 100-108 with it, 133 for random points and
151-153 with SBX and polynomial mutation, which are used instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.archives.portfolio import BINS, elites
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.novelty import Proposed
from evomerge.optimizers.preference import Preference
from evomerge.optimizers.sobol import SobolSearch
from evomerge.optimizers.variation import Box, crossover, mutate
from search_spaces.genes import Genes, Genome, Vector

FIRST_POINTS = 20  # evenly spread, before the first child
FEWEST_PARENTS = 4
AMPLIFICATION = 0.1  # largest factor on the expert's genes
LEAST_SHARE, MORE_SHARE = 0.5, 0.8  # of the best: a parent's chance is the product of 0.5 + 0.8 x over objectives
MOST_TRIES = 100


class CycleQd:
    """See the module's text."""

    def __init__(self, genes: Genes, *, weights: Vector, seed: int, bins: int = BINS) -> None:
        """``weights``: (objectives,), of which only the number counts; ``bins``: cells of each behaviour."""
        self._genes = genes
        self._preference = Preference(weights)  # for its scales, on which behaviours lie in [0, 1]
        self._bins = bins
        self._rng = np.random.default_rng(seed)
        self._first = SobolSearch(genes, seed=seed)
        self._proposed = Proposed()
        self._asked = 0
        self._known: dict[Genome, Vector] = {}
        self._experts: dict[int, tuple[float, Vector]] = {}  # by objective: value and genome of its best seed

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds, none of which was asked for or given before."""
        return [self._propose() for _ in range(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Offer successes to all archives; estimates and failures only stay known."""
        for observation in observations:
            genome, values = observation.genome, observation.values
            if observation.seed and values is not None:
                self._preference.see_seed(values)
            if genome is None:
                continue
            self._proposed.add(genome)
            if values is None or observation.estimated:
                continue
            self._known.setdefault(genome, np.asarray(values, dtype=np.float64))
            if observation.seed:
                self._see_expert(genome, values)

    def _see_expert(self, genome: Genome, values: Vector) -> None:
        for objective, value in enumerate(values.tolist()):
            if objective not in self._experts or value > self._experts[objective][0]:
                self._experts[objective] = (value, genome.values)

    def _propose(self) -> Genome:
        quality = self._asked % len(self._preference.weights)
        self._asked += 1
        explores = self._asked <= FIRST_POINTS or len(self._known) < FEWEST_PARENTS
        genome = None if explores else self._breed(quality)
        genome = genome or self._proposed.first_new(self._first)
        self._proposed.add(genome)
        return genome

    def _breed(self, quality: int) -> Genome | None:
        scaled = self._preference.scaled(np.array(list(self._known.values())))
        places = elites(scaled, quality, self._bins)
        known = list(self._known)
        members = np.array([known[place].values for place in places])
        chances = parent_chances(scaled[places])
        for _ in range(MOST_TRIES):
            parents = members[self._rng.choice(len(members), size=2, p=chances)]
            genome = Genome(self._child(parents, quality))
            if genome not in self._proposed:
                return genome
        return None

    def _child(self, parents: Vector, quality: int) -> Vector:
        box = Box(self._genes.low, self._genes.high)
        mixed = crossover(parents[0], parents[1], box, self._rng)
        if quality in self._experts:
            mixed = mixed + AMPLIFICATION * self._rng.random(len(mixed)) * self._experts[quality][1]
        return mutate(np.clip(mixed, box.low, box.high), box, self._rng)


def parent_chances(scaled: Vector) -> Vector:
    """Return the (members,) probabilities of being a parent for (members, objectives) ``scaled`` values."""
    low, high = scaled.min(axis=0), scaled.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    chances = (LEAST_SHARE + MORE_SHARE * (scaled - low) / spread).prod(axis=1)
    return np.asarray(chances / chances.sum())
