"""Spherical interpolation (Shoemake 1985) as coefficients: what each of two vectors counts, from inner products."""

from __future__ import annotations

import numpy as np

from search_spaces.genes import Vector

SMALLEST_SINE = 1e-6  # between vectors nearer to parallel, or antiparallel, than this the interpolation is linear


def slerp_coefficients(first: float, second: float, product: float, t: float) -> tuple[float, float]:
    """Return p and q of ``p x + q y``: ``sin((1 - t) a) / sin a`` and ``sin(t a) / sin a``, a the angle of x and y.

    Lengths are kept: t = 0 is x, t = 1 is y. Where sin a is at most `SMALLEST_SINE`, or a vector is zero, ``1 - t``
    and ``t``.

    Args:
        first, second: squared lengths of x and y.
        product: their inner product.
        t: in [0, 1].
    """
    lengths = float(np.sqrt(max(first, 0.0) * max(second, 0.0)))
    if lengths == 0.0:
        return 1.0 - t, t
    angle = float(np.arccos(np.clip(product / lengths, -1.0, 1.0)))
    sine = float(np.sin(angle))
    if sine <= SMALLEST_SINE:
        return 1.0 - t, t
    return float(np.sin((1.0 - t) * angle)) / sine, float(np.sin(t * angle)) / sine


def slerp(x: Vector, y: Vector, t: float) -> Vector:
    """Return the point at ``t`` between the vectors ``x`` and ``y``, (dim,) float64."""
    p, q = slerp_coefficients(float(x @ x), float(y @ y), float(x @ y), t)
    return p * x + q * y
