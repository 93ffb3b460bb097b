"""A population of genomes in steady state, which NSGA-II and NSGA-III share: they differ in who is crowded.

No generations (Durillo, Nebro, Luna and Alba 2009): every result joins the population as it comes back, then the
worst member leaves - the last front's most crowded. Failures never join; seeds with a genome do. What racing
estimated has fronts of its own, behind all that were measured in full. The first
population is an even sample of the space. Members of one front that are equally crowded, as clones in values are,
stand in the order of their tie-breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from evomerge.archives import pareto
from evomerge.archives.pareto import Positions
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.novelty import Proposed
from evomerge.optimizers.sobol import SobolSearch
from evomerge.optimizers.variation import child
from search_spaces.genes import Genes, Genome, Vector

Loneliness: TypeAlias = Callable[[Vector, Positions], Vector]
"""From (members, objectives) values and (members,) fronts to how lonely each member is in its front."""

POPULATION = 30  # between 20 and 40, the best for 5 and 30 genes; see docs/optimizers.md
FEWEST_PARENTS = 4
MOST_TRIES = 100  # of making a child that was not proposed before


@dataclass(frozen=True)
class _Member:
    genome: Genome
    values: Vector
    tie_break: float
    estimated: bool


class Evolution:
    """See the module's text."""

    def __init__(self, genes: Genes, loneliness: Loneliness, *, seed: int, population: int | None = None) -> None:
        """``population``: members kept, 30 if None."""
        self._genes = genes
        self._loneliness = loneliness
        self._size = population or POPULATION
        self._rng = np.random.default_rng(seed)
        self._first = SobolSearch(genes, seed=seed)
        self._explored = 0
        self._proposed = Proposed()
        self._members: list[_Member] = []
        self._fronts: Positions = np.zeros(0, dtype=np.intp)  # of the members
        self._lonely = np.zeros(0)

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds, none of which was asked for or given before."""
        return [self._propose() for _ in range(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Take successes into the population, one after another; failures only stay known."""
        for observation in observations:
            if observation.genome is None:
                continue
            if observation.seed:
                self._proposed.add(observation.genome)
            if observation.values is not None:
                self._join(_member(observation.genome, observation.values, observation))

    def _join(self, fresh: _Member) -> None:
        if any(fresh.genome == member.genome for member in self._members):
            return  # a seed given twice; two copies would only mate with each other
        self._members.append(fresh)
        self._sort()
        if len(self._members) > self._size:
            del self._members[max(range(len(self._members)), key=self._standing)]
            self._sort()

    def _sort(self) -> None:
        values = np.array([member.values for member in self._members])
        estimated = np.array([member.estimated for member in self._members])
        self._fronts, behind = np.zeros(len(values), dtype=np.intp), 0
        for group in (~estimated, estimated):  # an estimate stands behind everything that was measured in full
            if group.any():
                self._fronts[group] = pareto.ranks(values[group]) + behind
                behind = self._fronts[group].max() + 1
        self._lonely = self._loneliness(values, self._fronts)

    def _propose(self) -> Genome:
        explores = self._explored < self._size or len(self._members) < FEWEST_PARENTS
        genome = self._explore() if explores else self._breed()
        self._proposed.add(genome)
        return genome

    def _explore(self) -> Genome:
        self._explored += 1
        return self._proposed.first_new(self._first)

    def _breed(self) -> Genome:
        for _ in range(MOST_TRIES):
            genome = self._child()
            if genome not in self._proposed:
                return genome
        return self._explore()  # the population has collapsed into corners of the space

    def _child(self) -> Genome:
        return Genome(child(self._parent(), self._parent(), self._genes, self._rng))

    def _parent(self) -> Vector:
        """Binary tournament."""
        pair = self._rng.integers(len(self._members), size=2).tolist()
        return self._members[min(pair, key=self._standing)].genome.values

    def _standing(self, member: int) -> tuple[int, float, float]:
        """Sort key, less is better: the front, then how lonely it is there, then the tie-break."""
        return int(self._fronts[member]), -float(self._lonely[member]), -self._members[member].tie_break


def _member(genome: Genome, values: Vector, observation: Observation) -> _Member:
    return _Member(genome, np.asarray(values, dtype=np.float64), observation.tie_break, observation.estimated)
