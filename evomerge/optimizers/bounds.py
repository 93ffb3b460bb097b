"""Bounds by transformation: an unbounded optimizer searches R^n, whose points stand for those of the unit cube.

The map is that of pycma's `BoundTransform` (Hansen's c-cmaes, `boundary_transformation.c`), for whole arrays: the
identity inside, a parabola near a bound, and beyond it the mirror image, with a continuous first derivative. A bound is
reached at a finite point, so optima on a bound are found, and nothing is clipped, so no ranking goes flat.
"""

from __future__ import annotations

import numpy as np

from search_spaces.genes import Vector

MARGIN = 0.05  # width of the parabola on either side of a bound, as a share of the range


def to_unit_cube(points: Vector) -> Vector:
    """Return the points of the unit cube for which ``points`` stand.

    Args:
        points: (..., dim) float64, any finite numbers.

    Returns:
        (..., dim) float64 in [0, 1].
    """
    period = 1.0 + 2.0 * MARGIN
    beyond = np.mod(points + MARGIN, 2.0 * period)
    folded = period - np.abs(beyond - period) - MARGIN  # in [-MARGIN, 1 + MARGIN]
    low = np.square(np.maximum(folded + MARGIN, 0.0)) / (4.0 * MARGIN)
    high = 1.0 - np.square(np.maximum(1.0 + MARGIN - folded, 0.0)) / (4.0 * MARGIN)
    return np.where(folded < MARGIN, low, np.where(folded > 1.0 - MARGIN, high, folded))


def from_unit_cube(points: Vector) -> Vector:
    """Return the nearest points that stand for ``points`` ((..., dim) float64 in [0, 1])."""
    low = 2.0 * np.sqrt(MARGIN * points) - MARGIN
    high = 1.0 + MARGIN - 2.0 * np.sqrt(MARGIN * np.maximum(1.0 - points, 0.0))
    return np.where(points < MARGIN, low, np.where(points > 1.0 - MARGIN, high, points))
