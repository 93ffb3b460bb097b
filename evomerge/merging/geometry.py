"""Operators that see of a tensor only the inner products of its task vectors: what each source's share is.

All of them end in one linear pass, so that a candidate costs what task arithmetic does once the products are known.
Everything here is float64 on tables of (experts, experts).
"""

from __future__ import annotations

import numpy as np


def cosines(products: np.ndarray) -> np.ndarray:
    """Return the cosines, float64 (..., K, K), of vectors with these inner products; 0 where a vector is zero."""
    norms = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    norms = np.where(norms > 0.0, norms, 1.0)
    with np.errstate(invalid="ignore"):  # sources that are not finite fail the candidate later
        cosine: np.ndarray = np.clip(products / norms[..., :, None] / norms[..., None, :], -1.0, 1.0)
    return cosine


def model_stock_shares(products: np.ndarray) -> np.ndarray:
    """Return ``t = K c / (1 + (K - 1) c)``, c the mean cosine of all pairs or 0 if it is negative (Jang et al. 2024).

    ``products`` is float64 (..., K, K), the shares are (...). With c < 0 the formula leaves [0, 1]: below 0, or above
    1 once it has passed its pole at c = -1 / (K - 1). Task vectors that disagree say nothing of where their centre
    is, so the base is kept.
    """
    count = products.shape[-1]
    first, second = np.triu_indices(count, 1)
    cosine = np.maximum(0.0, cosines(products)[..., first, second].mean(axis=-1))
    shares: np.ndarray = count * cosine / (1.0 + (count - 1) * cosine)
    return shares


def nuslerp_coefficients(products: np.ndarray, t: float) -> np.ndarray:
    """Return the coefficients, float64 (..., 2), of two vectors in their spherical interpolation by ``t``.

    ``sin((1 - t) a) / sin a`` and ``sin(t a) / sin a`` with the angle a between them, from ``products`` (..., 2, 2);
    the linear ``1 - t`` and ``t``, which is the limit for parallel vectors, where sin a is below 1e-6 or one of the
    vectors is zero.
    """
    angle = np.arccos(cosines(products)[..., 0, 1])
    plain = (np.sin(angle) < 1e-6) | ~np.diagonal(products, axis1=-2, axis2=-1).all(axis=-1)
    angle = np.where(plain, 1.0, angle)
    shares = np.array([1.0 - t, t])
    found: np.ndarray = np.where(plain[..., None], shares, np.sin(shares * angle[..., None]) / np.sin(angle)[..., None])
    return found


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


def karcher_coefficients(products: np.ndarray, weights: np.ndarray, *, steps: int, tol: float) -> np.ndarray | None:
    """Return the coefficient of every vector, float64 (K,), in the weighted Karcher mean of their directions.

    The mean m stays in the span of the directions u_i, so that ``m <- exp_m(sum_i a_i log_m(u_i))`` needs their
    cosines only; its length is ``sum_i a_i n_i``, n_i that of vector i (``weights`` a_i >= 0 are scaled to a sum of 1).
    Zero vectors have no direction and drop out of m. None where the directions have no mean, being opposite.
    """
    norms = np.sqrt(products.diagonal())
    length = float(weights @ norms) / float(weights.sum())
    weights = np.where(norms > 0.0, weights, 0.0)
    if not weights.any():
        return np.zeros_like(weights)
    weights = weights / weights.sum()
    cosine = cosines(products)
    mean = _unit(weights, cosine)
    for _ in range(steps):
        if mean is None:
            break
        along = np.clip(cosine @ mean, -1.0, 1.0)
        angles = np.arccos(along)
        if (angles[weights > 0.0] > np.pi - 1e-6).any():
            return None
        near = angles < tol
        pull = weights * np.where(near, 0.0, angles / np.where(near, 1.0, np.sin(angles)))
        tangent = pull - float(pull @ along) * mean
        step = float(np.sqrt(max(0.0, tangent @ cosine @ tangent)))
        if step < tol:
            break
        mean = _unit(np.cos(step) * mean + np.sin(step) / step * tangent, cosine)
    return None if mean is None else length * mean / np.where(norms > 0.0, norms, 1.0)


def _unit(vector: np.ndarray, cosine: np.ndarray) -> np.ndarray | None:
    """Return ``vector``, a combination (K,) of unit vectors with these cosines, at length 1; none if it cancels."""
    size = float(np.sqrt(max(0.0, vector @ cosine @ vector)))
    return None if size < 1e-6 else vector / size
