"""A first guess of how genes go together: those of one group alike.

An optimizer that learns correlations starts without any. Where genes differ only in where they apply - the weights of
one expert in each of the layers - moving all of a group together does more than moving one against another, so a
search does well to begin with it. CMA-ES is invariant under linear maps of its space: to start with the covariance
``C`` of R^n is to start with the identity in coordinates z where ``x = C^(1/2) z`` (Hansen 2016, section on
invariance). ``C`` has ones on its diagonal and ``correlation`` between the
genes of a group, so a first step is as long as without.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from search_spaces.genes import Vector


class Correlated:
    """The map between R^n and the coordinates in which genes of a group are not yet correlated."""

    def __init__(self, groups: npt.NDArray[np.intp], correlation: float) -> None:
        """``groups``: (dim,) number of each gene's group; ``correlation``: in [0, 1)."""
        self._groups = groups
        self._sizes = np.bincount(groups)
        self._apart = np.sqrt(1.0 - correlation)
        self._together = np.sqrt(1.0 - correlation + self._sizes * correlation)

    def from_coordinates(self, z: Vector) -> Vector:
        """Return the (dim,) point of R^n that (dim,) coordinates stand for."""
        return self._scaled(z, self._apart, self._together)

    def to_coordinates(self, point: Vector) -> Vector:
        """Return the (dim,) coordinates of a (dim,) point of R^n."""
        return self._scaled(point, 1.0 / self._apart, 1.0 / self._together)

    def _scaled(self, values: Vector, apart: float, together: Vector) -> Vector:
        means = np.bincount(self._groups, values) / self._sizes
        return np.asarray(apart * values + ((together - apart) * means)[self._groups])
