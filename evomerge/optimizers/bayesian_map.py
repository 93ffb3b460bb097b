"""Bayesian MAP (Li et al. 2024, arXiv 2406.07529): a design that goes where the surrogates are uncertain.

The space is cut into bins of directions from its lowest corner (hyperspherical angles). After a first half of the
design a bin is drawn with a probability that grows with the squared leave-one-out errors of the points in it, and a
point in it is evaluated; the surrogates are refitted to all that is known each time. Then the front is searched as
in MAP.

The published code never refits and never visits an empty bin; here both are done, and every bootstrap round drops its
fifth from all points.
"""

from __future__ import annotations

import numpy as np

from evomerge.optimizers.map_search import MapSearch
from evomerge.optimizers.surrogate import Matrix
from search_spaces.genes import Genes, Genome, Vector

FIRST_SHARE = 0.5  # of the design that is even
FEW_GENES = 4  # below this an angle has `MANY_BINS`, else `FEW_BINS`
MANY_BINS, FEW_BINS = 4, 2
ROUNDS = 30
DROPPED = 0.2
TEMPERATURE = 0.07
RADII = (0.2, 0.8)  # of a new point, as shares of the way to the edge of the box
MOST_TRIES = 100


class BayesianMap(MapSearch):
    """See the module's text."""

    def __init__(self, genes: Genes, *, seed: int, design: int | None = None, batch: int | None = None) -> None:
        """``design``: points before the front is searched, 1.5 for every coefficient if None; ``batch`` as in MAP."""
        super().__init__(genes, seed=seed, design=design, batch=batch)
        self._adaptive = self._design_size - int(np.ceil(FIRST_SHARE * self._design_size))
        self._design_size -= self._adaptive

    def _from_design(self) -> Genome | None:
        genome = super()._from_design()
        if genome is not None or self._adaptive == 0:
            return genome
        self._refit()
        if self._surrogates is None:
            return None
        self._adaptive -= 1
        return self._uncertain()

    def _uncertain(self) -> Genome | None:
        for _ in range(MOST_TRIES):
            genome = self._genome(self._point_in(self._draw_bin()))
            if genome not in self._proposed:
                return genome
        return None

    def _draw_bin(self) -> int:
        scores = bin_scores(self._squared_errors(), self._bins_of(self._fitted_to), self._bin_count, self._rng)
        weights = np.exp((scores - scores.max()) / TEMPERATURE)
        return int(self._rng.choice(len(weights), p=weights / weights.sum()))

    def _squared_errors(self) -> Vector:
        """(points,) squared leave-one-out errors, those of each objective as shares of their largest, added up."""
        assert self._surrogates is not None
        squared = np.square([surrogate.errors for surrogate in self._surrogates.each])
        return np.asarray((squared / np.maximum(squared.max(axis=1, keepdims=True), 1e-300)).mean(axis=0))

    # ------------------------------------------------ bins of directions

    @property
    def _per_angle(self) -> int:
        return MANY_BINS if len(self._genes) < FEW_GENES else FEW_BINS

    @property
    def _bin_count(self) -> int:
        return int(self._per_angle ** (len(self._genes) - 1))

    def _bins_of(self, unit: Matrix) -> Vector:
        """(points,) number of the bin of each (points, genes) point."""
        cells = np.minimum((angles(unit) / (np.pi / 2) * self._per_angle).astype(int), self._per_angle - 1)
        return np.asarray(cells @ (self._per_angle ** np.arange(cells.shape[1])), dtype=int)

    def _point_in(self, number: int) -> Vector:
        """A point of the unit cube in bin ``number``: angles uniform in it, a radius in `RADII` of the way to the
        edge."""
        cells = np.array([number // self._per_angle**i % self._per_angle for i in range(len(self._genes) - 1)])
        turned = (cells + self._rng.random(len(cells))) / self._per_angle * np.pi / 2
        direction = np.append(np.cos(turned), 1.0) * np.append(1.0, np.cumprod(np.sin(turned)))
        return np.asarray(direction / direction.max() * self._rng.uniform(*RADII))


def angles(unit: Matrix) -> Matrix:
    """Return the (points, genes - 1) hyperspherical angles of (points, genes) ``unit`` >= 0, in [0, pi/2]."""
    rest = np.sqrt(np.cumsum(np.square(unit[:, ::-1]), axis=1))[:, ::-1]
    return np.asarray(np.arctan2(rest[:, 1:], unit[:, :-1]))


def bin_scores(squared: Vector, bins: Vector, count: int, rng: np.random.Generator) -> Vector:
    """Return (bins,) mean of the (points,) ``squared`` errors in each bin, plus half the standard deviation of that
    mean over rounds that each leave a fifth of all points out. A bin without points gets the highest score."""
    keep = rng.random((ROUNDS, len(squared))) >= DROPPED
    member = bins[None, :] == np.arange(count)[:, None]
    sums, sizes = (keep * squared) @ member.T, keep.astype(float) @ member.T
    means = np.divide(sums, sizes, out=np.full(sums.shape, np.nan), where=sizes > 0)
    scores = np.full(count, -np.inf)
    for number in np.flatnonzero(member.any(axis=1)):
        known = means[~np.isnan(means[:, number]), number]
        scores[number] = squared[member[number]].mean() + 0.5 * (known.std() if len(known) else 0.0)
    return np.asarray(np.where(np.isneginf(scores), scores.max(), scores), dtype=np.float64)
