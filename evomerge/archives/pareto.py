"""Pareto fronts and hypervolume of maximised objectives: the one adapter of moocore."""

from __future__ import annotations

import moocore
import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def front(values: Matrix) -> npt.NDArray[np.intp]:
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
    return float(moocore.hypervolume(np.ascontiguousarray(above), ref=reference, maximise=True))
