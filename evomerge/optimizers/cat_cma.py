"""CatCMA with margin (Hamano et al. 2025, arXiv 2504.07884), asynchronous: the one adapter of cmaes.

CMA-ES over real and integer genes, whose margins keep every whole number reachable, beside a categorical distribution
with a margin for every categorical gene. It maximises the preference's single number. A population is drawn at a time
and stays together: the distribution moves when all of it has come back; points asked for meanwhile begin the next
population, drawn from the same distribution. When cmaes says that a run has converged, another one starts from a fresh
point with twice the population (Auger and Hansen 2005).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cmaes import CatCMAwM

from evomerge.optimizers.contract import Observation
from evomerge.optimizers.preference import Preference, ranked_values
from search_spaces.genes import Genes, Genome, Vector

SIGMA = 0.2  # first step of real genes, as a share of their range
EDGE = 0.02  # share of the range that a start keeps from the bounds
TRUST = 0.5  # probability that a start gives to the categories of the point it starts from
SMALLEST_SPREAD = 0.3  # first standard deviation of integer genes, in whole numbers


@dataclass
class _Population:
    """Draws of one population: `solutions` by genome as drawn, and what has come back of them."""

    solutions: list[tuple[Genome, CatCMAwM.Solution]] = field(default_factory=list)
    back: list[tuple[CatCMAwM.Solution, Observation]] = field(default_factory=list)


class CatCma:
    """One CatCMAwM run after another; see the module's text."""

    def __init__(self, genes: Genes, *, preference: Preference, seed: int, population: int | None = None) -> None:
        """``population``: points per update, 4 + 3 ln(genes) if None."""
        self._genes = genes
        self._preference = preference
        self._rng = np.random.default_rng(seed)
        self._size = population or 4 + int(3 * np.log(len(genes)))
        self._best_seed: tuple[float, Vector] | None = None
        self._run: CatCMAwM | None = None
        self._populations: list[_Population] = []
        kinds = np.array([gene.kind for gene in genes.genes])
        self._real, self._integer, self._categorical = (
            np.flatnonzero(kinds == kind) for kind in ("real", "integer", "categorical")
        )

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds."""
        return [self._draw() for _ in range(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Take in what came back; the distribution moves once a whole population is there."""
        for observation in observations:
            if observation.seed:
                self._see_seed(observation)
            elif observation.genome is not None:
                self._take(observation)

    def _see_seed(self, observation: Observation) -> None:
        if observation.values is None:
            return
        self._preference.see_seed(observation.values)
        if observation.genome is not None:
            value = self._preference.scalar(observation.values)
            if self._best_seed is None or value > self._best_seed[0]:
                self._best_seed = (value, observation.genome.values)

    def _draw(self) -> Genome:
        if self._run is None:
            self._run = self._new_run(self._best_seed[1] if self._best_seed else self._genes.start)
        if not self._populations or self._drawn(self._populations[-1]) == self._size:
            self._populations.append(_Population())
        solution = self._run.ask()
        genome = self._genome(solution)
        self._populations[-1].solutions.append((genome, solution))
        return genome

    @staticmethod
    def _drawn(population: _Population) -> int:
        return len(population.solutions) + len(population.back)

    def _take(self, observation: Observation) -> None:
        """File ``observation`` under the draw it belongs to; what belongs to none is from before a restart."""
        for population in self._populations:
            for place, (genome, solution) in enumerate(population.solutions):
                if genome == observation.genome:
                    del population.solutions[place]
                    population.back.append((solution, observation))
                    if len(population.back) == self._size:
                        self._move(population)
                    return

    def _move(self, population: _Population) -> None:
        """Update the distribution. A population of which less than half succeeded teaches nothing but the order of
        failures, and is dropped."""
        self._populations.remove(population)
        observations = [observation for _, observation in population.back]
        if self._run is None or 2 * sum(o.values is not None for o in observations) < self._size:
            return
        numbers = ranked_values(observations, self._preference)
        pairs = zip(population.back, numbers, strict=True)
        with warnings.catch_warnings():
            # While all values were equal it has no scale for what lies outside of bounds, and leaves their order alone.
            warnings.simplefilter("ignore", RuntimeWarning)
            self._run.tell([(solution, -number) for (solution, _), number in pairs])  # cmaes minimises
        if (len(self._real) or len(self._integer)) and self._run.should_stop():
            self._size *= 2
            self._populations = []
            self._run = self._new_run(self._genes.from_unit(self._rng.random(len(self._genes))))

    # ------------------------------------------------ between genomes and solutions

    def _new_run(self, start: Vector) -> CatCMAwM:
        genes = self._genes
        ordered = np.concatenate([self._real, self._integer])
        width = (genes.high - genes.low)[ordered]
        spread = SIGMA * width
        spread[len(self._real) :] = np.maximum(spread[len(self._real) :], SMALLEST_SPREAD)
        inside = np.clip(
            start, genes.low + EDGE * (genes.high - genes.low), genes.high - EDGE * (genes.high - genes.low)
        )
        middle = np.where(genes.whole, start, inside)
        whole = [np.arange(genes.low[i], genes.high[i] + 1.0) for i in self._integer]
        return CatCMAwM(
            x_space=np.column_stack([genes.low, genes.high])[self._real] if len(self._real) else None,
            z_space=whole or None,
            c_space=[genes.genes[i].choices for i in self._categorical] or None,
            population_size=self._size,
            mean=middle[ordered].astype(np.float64) if len(ordered) else None,
            sigma=1.0,
            cov=np.diag(np.square(spread)) if len(ordered) else None,
            cat_param=self._categories(start) if len(self._categorical) else None,
            seed=int(self._rng.integers(2**32)),
        )

    def _categories(self, start: Vector) -> Vector:
        """(categorical genes, most choices) probabilities: `TRUST` for the start's choice, the rest evenly."""
        choices = [self._genes.genes[i].choices for i in self._categorical]
        table = np.zeros((len(choices), max(choices)))
        for row, (position, count) in enumerate(zip(self._categorical, choices, strict=True)):
            chosen = int(start[position])
            table[row, :count] = (1.0 - max(TRUST, 1.0 / count)) / (count - 1)
            table[row, chosen] = max(TRUST, 1.0 / count)
        return table

    def _genome(self, solution: CatCMAwM.Solution) -> Genome:
        values = np.empty(len(self._genes))
        if solution.x is not None:
            values[self._real] = solution.x
        if solution.z is not None:
            values[self._integer] = solution.z
        if solution.c is not None:
            values[self._categorical] = solution.c.argmax(axis=1)
        return Genome(self._genes.nearest(values))
