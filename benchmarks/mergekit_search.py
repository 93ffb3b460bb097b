"""The search of mergekit-evolve 0.1.5, for comparison: its genome and its settings of CMA-ES.

From its sources (evo/genome.py, scripts/evolve.py): every weight starts at 1/models, and `abs()` of a gene is the
weight, without an upper bound; pycma's `fmin2` with sigma 1/6 and its own population of 4 + 3 ln(genes), a barrier
after each, no bounds, no restart, the sum of the tasks' metrics as fitness; at the end the mean of the distribution is
evaluated once. Two kindnesses: here it has a seed, and it goes on when pycma's criteria would end it, which happens
early where accuracies repeat; `would_have_stopped_at` tells after how many evaluations. No peer code is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from evomerge.optimizers.contract import Observation
from search_spaces.genes import Genome, Vector

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pycma tells everybody without matplotlib that it cannot plot
    import cma

SIGMA = 1.0 / 6.0


class MergekitSearch:
    """Asked and told like an optimizer, one point at a time; of failures it knows nothing, they count as 0."""

    def __init__(self, *, genes: int, models: int, seed: int, evaluations: int) -> None:
        """``genes``: number of weights; ``evaluations``: the budget, whose last one is spent on the mean."""
        quiet = {"verbose": -9, "verb_log": 0, "verb_disp": 0}
        options = {"seed": np.nan, "randn": self._standard_normal, **quiet}
        self._rng = np.random.default_rng(seed)
        self._run = cma.CMAEvolutionStrategy(np.full(genes, 1.0 / models), SIGMA, options)
        self._left = evaluations
        self._drawn: list[Vector] = []
        self._out: list[Vector] = []
        self._fitness: list[float] = []
        self._told = 0
        self.would_have_stopped_at: int | None = None

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes of weights, none of them negative."""
        return [Genome(np.abs(self._next())) for _ in range(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Take in what was asked for, in the order in which it was asked for; seeds are not looked at."""
        for observation in observations:
            if observation.seed or self._left == 0:  # nothing follows the mean
                continue
            self._told += 1
            self._fitness.append(0.0 if observation.values is None else -float(observation.values.sum()))
            if len(self._fitness) == self._run.popsize:
                self._run.tell(self._out, self._fitness)
                self._out, self._fitness = [], []
                if self._run.stop() and self.would_have_stopped_at is None:
                    self.would_have_stopped_at = self._told

    def _next(self) -> Vector:
        self._left -= 1
        if self._left == 0:
            return np.asarray(self._run.mean)
        if not self._drawn:
            self._drawn = self._run.ask()
        self._out.append(self._drawn.pop(0))
        return self._out[-1]

    def _standard_normal(self, *shape: int) -> Vector:
        return self._rng.standard_normal(shape)
