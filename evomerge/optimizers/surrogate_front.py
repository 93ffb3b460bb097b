"""The front that surrogates predict, and which of its points are worth a real evaluation. Nothing here is measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.archives import pareto
from evomerge.optimizers.niching import directions, survivors
from evomerge.optimizers.surrogate import Matrix, Surrogate, fit
from evomerge.optimizers.variation import Box, crossover, mutate
from search_spaces.genes import Vector

POPULATION = 60
GENERATIONS = 20
OPTIMISM = 0.1  # standard deviations added to a prediction when its improvement is reckoned


@dataclass(frozen=True)
class Surrogates:
    """One surrogate per objective, fitted to the same points."""

    each: tuple[Surrogate, ...]

    @classmethod
    def fitted(cls, unit: Matrix, values: Matrix) -> Surrogates:
        """Fit every column of (points, objectives) ``values``, more is better, at (points, genes) ``unit``."""
        return cls(tuple(fit(unit, column) for column in values.T))

    @property
    def r_squared(self) -> Vector:
        """(objectives,) leave-one-out R^2."""
        return np.array([surrogate.r_squared for surrogate in self.each])

    def predict(self, unit: Matrix) -> tuple[Matrix, Matrix]:
        """Return (points, objectives) means and standard deviations at (points, genes) ``unit``."""
        pairs = [surrogate.predict(unit) for surrogate in self.each]
        return np.column_stack([mean for mean, _ in pairs]), np.column_stack([spread for _, spread in pairs])


def predicted_front(surrogates: Surrogates, known: Matrix, rng: np.random.Generator) -> Matrix:
    """Return (`POPULATION`, genes) points inside the unit cube: NSGA-III on the surrogates, begun at ``known``."""
    genes = known.shape[1]
    box = Box(np.zeros(genes), np.ones(genes))
    rays = directions(len(surrogates.each), POPULATION)
    members = np.vstack([known[-POPULATION // 2 :], rng.random((POPULATION - min(len(known), POPULATION // 2), genes))])
    values = surrogates.predict(members)[0]
    for _ in range(GENERATIONS):
        pairs = rng.integers(POPULATION, size=(2, POPULATION))
        children = mutate(crossover(members[pairs[0]], members[pairs[1]], box, rng), box, rng)
        members = np.vstack([members, children])
        values = np.vstack([values, surrogates.predict(children)[0]])
        kept = survivors(values, POPULATION, rays, rng)
        members, values = members[kept], values[kept]
    return members


def promising(surrogates: Surrogates, points: Matrix, *, there: Matrix, count: int) -> list[Vector]:
    """Return ``count`` of the (points, genes) ``points``, each adding the most hypervolume to what is there before it.

    What is there: the predictions for the (n, genes) points ``there``, measured or out, and for those chosen.
    Predictions are compared with predictions, since a measured value carries noise that no prediction can beat (bells
    of two tasks, 3p evaluations, seeds 0-9: 0.963 of the ideal hypervolume, against 0.946 beside measured values). What
    is not there yet counts with `OPTIMISM` standard deviations on top, so that what is uncertain gets a try.
    """
    mean, spread = surrogates.predict(points)
    hoped = mean + OPTIMISM * spread
    known = surrogates.predict(there)[0]
    low, high = known.min(axis=0), np.maximum(known.max(axis=0), hoped.max(axis=0))
    scale = np.where(high > low, high - low, 1.0)
    chosen: list[int] = []
    for _ in range(min(count, len(points))):
        gains = _gains(np.vstack([known, mean[chosen]]), hoped, low, scale)
        gains += 1e-9 * (spread / scale).sum(axis=1)
        gains[chosen] = -np.inf
        chosen.append(int(gains.argmax()))
    return [points[i] for i in chosen]


def _gains(there: Matrix, hoped: Matrix, low: Vector, scale: Vector) -> Vector:
    """Return (points,) hypervolume that each row of ``hoped`` adds to ``there``, objectives scaled to [0, 1]."""
    origin = np.full(len(low), -0.01)
    front = (there[pareto.front(there)] - low) / scale
    before = pareto.hypervolume(front, origin)
    scaled = (hoped - low) / scale
    return np.array([pareto.hypervolume(np.vstack([front, row]), origin) - before for row in scaled])
