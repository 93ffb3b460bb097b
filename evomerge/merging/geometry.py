"""Operators that see of a tensor only the inner products of its task vectors: what each source's share is.

All of them end in one linear pass, so that a candidate costs what task arithmetic does once the products are known.
Everything here is float64 on tables of (experts, experts).
"""

from __future__ import annotations

import numpy as np


def cosines(products: np.ndarray) -> np.ndarray:
    """Return the cosines, float64 (K, K), of vectors with these inner products (K, K); 0 where a vector is zero."""
    norms = np.sqrt(np.diag(products))
    norms = np.where(norms > 0.0, norms, 1.0)
    cosine: np.ndarray = np.clip(products / norms[:, None] / norms, -1.0, 1.0)
    return cosine


def model_stock_share(products: np.ndarray) -> float:
    """Return ``t = K c / (1 + (K - 1) c)``, c the mean cosine of all pairs or 0 if it is negative (Jang et al. 2024).

    With c < 0 the formula leaves [0, 1]: below 0, or above 1 once it has passed its pole at c = -1 / (K - 1).
    Task vectors that disagree say nothing of where their centre is, so the base is kept.
    """
    count = len(products)
    pairs = cosines(products)[np.triu_indices(count, 1)]
    cosine = max(0.0, float(pairs.mean()))
    return count * cosine / (1.0 + (count - 1) * cosine)


def nuslerp_coefficients(products: np.ndarray, t: float) -> tuple[float, float]:
    """Return the coefficients of two vectors in their spherical interpolation by ``t``, lengths kept.

    ``sin((1 - t) a) / sin a`` and ``sin(t a) / sin a`` with the angle a between them; the linear ``1 - t`` and ``t``,
    which is the limit for parallel vectors, where sin a is below 1e-6 or one of the vectors is zero.
    """
    if not products.diagonal().all():
        return 1.0 - t, t
    angle = float(np.arccos(cosines(products)[0, 1]))
    if np.sin(angle) < 1e-6:
        return 1.0 - t, t
    return float(np.sin((1.0 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle))


def multislerp_coefficients(products: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """Return the coefficient of every vector, float64 (K,), in ``sum_i w_i n_i * m / |m|`` with ``m = sum_i w_i u_i``.

    n_i and u_i are length and direction of vector i; zero vectors have no direction and drop out. None where m
    is too short, by cancelling, to have a direction: below 1e-6 of the sum of the weights' magnitudes.

    The published form goes on from m / |m| by the weighted mean of the u_i in its tangent space. That mean is
    ``m - <m, m / |m|> m / |m| = 0``: there is nowhere to go.
    """
    norms = np.sqrt(products.diagonal())
    weights = np.where(norms > 0.0, weights, 0.0)
    if not weights.any():
        return np.zeros_like(weights)
    length = float(np.sqrt(max(0.0, weights @ cosines(products) @ weights)))
    if length <= 1e-6 * float(np.abs(weights).sum()):
        return None
    directions = weights / np.where(norms > 0.0, norms, 1.0)
    coefficients: np.ndarray = float(weights @ norms) / length * directions
    return coefficients
