"""A Gaussian process with as few scales as can tell layers from experts: what a search knows, as a smooth function.

Genes that differ only in where they apply form a group (`Genes.groups`): the weights of one expert in each of the
layers. A point is described by the means of its groups and by how far each gene lies from its group's mean. Kernel:
Matern 5/2 (Rasmussen and Williams 2006, eq. 4.17) with one length scale for the means and one for the rest; with a
share of noise these are all that is learnt, by the likelihood (ibid., eq. 5.8) on a grid, where a process with a length
scale for each of dozens of genes would learn little from dozens of points.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from search_spaces.genes import Vector

LENGTHS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)  # shares of the unit cube's edge
NOISES = (1e-6, 1e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # variance, as a share of that of the function

Scales = tuple[int, int, int]  # places in LENGTHS (means), LENGTHS (rest) and NOISES


class _Fit(NamedTuple):
    likelihood: float
    solved: Vector  # (points,): K^-1 y


class GaussianProcess:
    """Fitted again and again to a growing set of points; see the module's text."""

    def __init__(self, groups: npt.NDArray[np.intp]) -> None:
        """``groups``: (dim,) number of each gene's group."""
        self._groups = groups
        self._sizes = np.bincount(groups)
        self._scales: Scales | None = None
        self._solved = np.zeros(0)
        self._known = (np.zeros((0, len(self._sizes))), np.zeros((0, len(groups))))

    def fit(self, points: Vector, values: Vector, *, tune: bool = True) -> None:
        """Learn (points, dim) ``points`` of the unit cube and their (points,) ``values``.

        Args:
            tune: look for better scales next to the last ones, among all of them the first time.
        """
        spread = float(values.std())
        self._mean, self._spread = float(values.mean()), spread if spread > 0.0 else 1.0
        self._known = self._parts(points)
        squares = tuple(_squares(part, part) for part in self._known)
        scaled = (values - self._mean) / self._spread
        fits = {scales: _fit(squares, scaled, scales) for scales in self._candidates(tune)}
        self._scales = max(fits, key=lambda scales: fits[scales].likelihood)
        self._solved = fits[self._scales].solved

    def predict(self, points: Vector) -> Vector:
        """Return the (points,) expected values at (points, dim) ``points``.

        Raises:
            ValueError: nothing was fitted.
        """
        if self._scales is None:
            raise ValueError("a Gaussian process predicts after it was fitted, got no points yet")
        squares = tuple(_squares(part, known) for part, known in zip(self._parts(points), self._known, strict=True))
        return np.asarray(_kernel(squares, self._scales) @ self._solved * self._spread + self._mean)

    def _parts(self, points: Vector) -> tuple[Vector, Vector]:
        """(points, groups) means, as long as the steps of all their genes together, and (points, dim) what is left."""
        means = np.stack([np.bincount(self._groups, point) for point in points]) / self._sizes
        return means * np.sqrt(self._sizes), points - means[:, self._groups]

    def _candidates(self, tune: bool) -> Iterable[Scales]:
        if self._scales is None:
            every_other = range(0, len(LENGTHS), 2)
            return product(every_other, every_other, range(0, len(NOISES), 2))
        if not tune:
            return (self._scales,)
        means, rest, noise = self._scales
        near = ((0, 0, 0), (-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
        found = ((means + a, rest + b, noise + c) for a, b, c in near)
        return (p for p in found if min(p) >= 0 and max(p[:2]) < len(LENGTHS) and p[2] < len(NOISES))


def _squares(some: Vector, others: Vector) -> Vector:
    """(n, m) squared distances between (n, dim) and (m, dim) points."""
    sums = np.square(some).sum(axis=1)[:, None] + np.square(others).sum(axis=1)[None, :]
    return np.asarray(np.maximum(sums - 2.0 * some @ others.T, 0.0))


def _kernel(squares: tuple[Vector, ...], scales: Scales) -> Vector:
    means, rest = (square / LENGTHS[place] ** 2 for square, place in zip(squares, scales[:2], strict=True))
    distance = np.sqrt(5.0 * (means + rest))
    return np.asarray((1.0 + distance + np.square(distance) / 3.0) * np.exp(-distance))


def _fit(squares: tuple[Vector, ...], values: Vector, scales: Scales) -> _Fit:
    """The likelihood with the best variance of the function, but for a constant."""
    covariance = _kernel(squares, scales) + NOISES[scales[2]] * np.eye(len(values))
    root = np.linalg.cholesky(covariance)
    solved = np.linalg.solve(root.T, np.linalg.solve(root, values))
    variance = max(float(values @ solved) / len(values), 1e-12)
    return _Fit(-0.5 * len(values) * np.log(variance) - float(np.log(np.diag(root)).sum()), solved)
