"""Pareto fronts and hypervolume of maximised objectives: the one adapter of moocore."""

from __future__ import annotations

from typing import TypeAlias

import moocore
import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Positions: TypeAlias = npt.NDArray[np.intp]


def front(values: Matrix) -> Positions:
    """Return the positions of the non-dominated rows.

    Args:
        values: (points, objectives) float64, more is better.

    Returns:
        (front,) positions in ascending order; of equal rows the first is kept.
    """
    if len(values) == 0:
        return np.zeros(0, dtype=np.intp)
    kept = moocore.is_nondominated(np.ascontiguousarray(values), maximise=True, keep_weakly=False)
    return np.flatnonzero(kept)


def hypervolume(values: Matrix, reference: npt.NDArray[np.float64]) -> float:
    """Return the volume that the rows of ``values`` dominate above ``reference``.

    Args:
        values: (points, objectives) float64, more is better.
        reference: (objectives,) float64; rows that do not exceed it in every objective add nothing.
    """
    if len(values) == 0:
        return 0.0
    above = values[(values > reference).all(axis=1)]
    if len(above) == 0:
        return 0.0
    if values.shape[1] == 1:  # moocore measures from two objectives on
        return float(above.max() - reference[0])
    return float(moocore.hypervolume(np.ascontiguousarray(above), ref=reference, maximise=True))


def ranks(values: Matrix) -> Positions:
    """Return the front to which each row belongs (Deb et al. 2002, fast non-dominated sorting).

    Front 0 is dominated by nobody, front 1 by front 0 only, and so on. Equal rows share a front.

    Args:
        values: (points, objectives) float64, more is better.

    Returns:
        (points,) fronts, 0 is the best.
    """
    if len(values) == 0:
        return np.zeros(0, dtype=np.intp)
    if values.shape[1] == 1:  # moocore sorts from two objectives on
        return np.asarray(np.unique(-values[:, 0], return_inverse=True)[1], dtype=np.intp)
    return np.asarray(moocore.pareto_rank(np.ascontiguousarray(values), maximise=True), dtype=np.intp)


def crowding(values: Matrix) -> npt.NDArray[np.float64]:
    """Return the crowding distance of each row among the others (Deb et al. 2002, section III-B).

    ``d_i = sum_m (next_m(i) - previous_m(i)) / (max_m - min_m)``, the neighbours being those of row i when sorted by
    objective m; the ends of every objective that varies get infinity.

    Args:
        values: (points, objectives) float64 of one front.

    Returns:
        (points,) distances, more is lonelier.
    """
    distances = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        sorted_column = column[order]
        spread = sorted_column[-1] - sorted_column[0] if len(column) else 0.0
        if spread == 0.0:
            continue
        distances[order[1:-1]] += (sorted_column[2:] - sorted_column[:-2]) / spread
        distances[order[[0, -1]]] = np.inf
    return distances


class Front:
    """A Pareto front that grows one point at a time; adding costs one comparison with each of its points."""

    def __init__(self, objectives: int) -> None:
        self._columns = np.empty((objectives, 64))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def values(self) -> Matrix:
        """(front, objectives) float64, in the order in which they came."""
        return np.ascontiguousarray(self._columns[:, : self._count].T)

    def add(self, values: npt.NDArray[np.float64]) -> bool:
        """Add (objectives,) ``values``, more is better; return whether they extend the front (equals do not)."""
        mine, point = self._columns[:, : self._count], values[:, None]
        if (mine >= point).all(axis=0).any():
            return False
        beaten = (mine <= point).all(axis=0)
        if beaten.any():
            kept = mine[:, ~beaten]
            self._count = kept.shape[1]
            self._columns[:, : self._count] = kept
        if self._count == self._columns.shape[1]:
            self._columns = np.concatenate([self._columns, np.empty_like(self._columns)], axis=1)
        self._columns[:, self._count] = values
        self._count += 1
        return True
