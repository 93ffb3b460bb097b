"""Quadratic surrogates of objectives over few genes (Li et al. 2024, MAP, arXiv 2406.07529).

``value ~ link(phi(u)' beta)`` with u the genes scaled to [0, 1] and ``phi(u) = [u_i^2, u_i u_j (i < j), u_i, 1]``:
p = (N + 1)(N + 2)/2 coefficients for N genes. The link follows from the values: a rate (all within [0, 1], or an error
rate turned, all within [-1, 0]) goes through the logistic function; a loss turned (none above 0) through minus the
softplus; anything else stays as it is.

The fit starts with ridge regression on the scale of the link, which does not diverge where non-linear least squares
from a constant start do, and ends with least squares on the scale of the values, drawn towards that start. Both
penalties are those with the smallest leave-one-out error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit  # type: ignore[import-untyped]

from search_spaces.genes import Vector

RIDGES = tuple(10.0**k for k in (-6, -5, -4, -3, -2, -1.5, -1, -0.5, 0, 1))
PULLS = tuple(10.0**k for k in (-4, -3, -2, -1, 0, 1))  # towards the start of the second stage
MOST_STEPS = 20
CLIP = 0.02  # rates of 0 and 1 have no finite logit
Matrix = Vector


class Link(NamedTuple):
    """``value = sign * forward(eta) + shift``, its derivative, and a start for eta from values."""

    name: str
    forward: Callable[[Vector], Vector]
    slope: Callable[[Vector], Vector]
    inverse: Callable[[Vector], Vector]


def _softplus_inverse(values: Vector) -> Vector:
    clipped = np.maximum(values, 1e-3 * max(float(np.max(values)), 1e-12))
    return np.asarray(clipped + np.log(-np.expm1(-clipped)))


def _rate(shift: float) -> Link:
    return Link(
        "sigmoid",
        lambda eta: expit(eta) - shift,
        lambda eta: expit(eta) * expit(-eta),
        lambda values: logit(np.clip(values + shift, CLIP, 1.0 - CLIP)),
    )


IDENTITY = Link("identity", lambda eta: eta, np.ones_like, lambda values: values)
LOSS = Link("softplus", lambda eta: -np.logaddexp(0.0, eta), lambda eta: -expit(eta), lambda v: _softplus_inverse(-v))


def link_of(values: Vector) -> Link:
    """Return the link that suits (points,) maximised ``values``; see the module's text."""
    low, high = float(values.min()), float(values.max())
    if low >= 0.0 and high <= 1.0:
        return _rate(0.0)
    if low >= -1.0 and high <= 0.0:
        return _rate(1.0)
    return LOSS if high <= 0.0 else IDENTITY


def coefficients(genes: int) -> int:
    """Return the number of coefficients of one objective, p = (N + 1)(N + 2)/2."""
    return (genes + 1) * (genes + 2) // 2


def features(unit: Matrix) -> Matrix:
    """Return (points, p) features of (points, genes) ``unit``, centred: squares, products, genes, 1."""
    centred = 2.0 * unit - 1.0
    rows, columns = np.triu_indices(unit.shape[1])
    return np.hstack([centred[:, rows] * centred[:, columns], centred, np.ones((len(unit), 1))])


@dataclass(frozen=True)
class Surrogate:
    """One objective's fit.

    Attributes:
        beta: (p,) coefficients.
        covariance: (p, p) of the coefficients, from the linearised fit.
        errors: (points,) of the fit: each point's value minus what the others predict for it.
        r_squared: leave-one-out: 1 - sum of squared errors of each point predicted by the others / total.
    """

    link: Link
    beta: Vector
    covariance: Matrix
    errors: Vector
    r_squared: float

    def predict(self, unit: Matrix) -> tuple[Vector, Vector]:
        """Return (points,) means and standard deviations at (points, genes) ``unit``."""
        phi = features(unit)
        eta = phi @ self.beta
        slope = np.abs(self.link.slope(eta))
        spread = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", phi, self.covariance, phi), 0.0))
        return self.link.forward(eta), slope * spread


class _Fit(NamedTuple):
    beta: Vector
    errors: Vector  # leave-one-out, on the scale of the values
    covariance: Matrix


def fit(unit: Matrix, values: Vector) -> Surrogate:
    """Fit one objective to (points,) ``values``, more is better, at (points, genes) ``unit`` in [0, 1]."""
    phi, link = features(unit), link_of(values)
    start = min((_ridge(phi, values, link, ridge) for ridge in RIDGES), key=_size)
    best = min([start, *(_least_squares(phi, values, link, start.beta, pull) for pull in PULLS)], key=_size)
    total = float(np.square(values - values.mean()).sum())
    r_squared = 1.0 - float(np.square(best.errors).sum()) / total if total > 0.0 else 1.0
    return Surrogate(link, best.beta, best.covariance, best.errors, r_squared)


def _size(fitted: _Fit) -> float:
    size = float(np.square(fitted.errors).sum())
    return size if np.isfinite(size) else np.inf


def _penalty(phi: Matrix) -> Vector:
    penalty = np.ones(phi.shape[1])
    penalty[-1] = 1e-9  # the constant is free
    return penalty


def _ridge(phi: Matrix, values: Vector, link: Link, ridge: float) -> _Fit:
    """Ridge regression on the scale of the link, with exact leave-one-out predictions."""
    eta = link.inverse(values)
    inverse = np.linalg.inv(phi.T @ phi + len(phi) * ridge * np.diag(_penalty(phi)))
    beta = inverse @ phi.T @ eta
    leverage = np.clip(np.einsum("ij,jk,ik->i", phi, inverse, phi), 0.0, 1.0 - 1e-6)
    without = eta - (eta - phi @ beta) / (1.0 - leverage)
    errors = values - link.forward(without)
    variance = float(np.square((eta - phi @ beta) / (1.0 - leverage)).mean())
    return _Fit(beta, errors, np.asarray(variance * inverse))


def _least_squares(phi: Matrix, values: Vector, link: Link, start: Vector, pull: float) -> _Fit:
    """Least squares on the scale of the values, drawn to ``start``: damped Gauss-Newton steps.

    Leave-one-out errors are those of the linearised fit, ``e_i / (1 - h_i)``.
    """
    beta, loss = start, np.inf
    for _ in range(MOST_STEPS):
        eta = phi @ beta
        errors = values - link.forward(eta)
        jacobian = link.slope(eta)[:, None] * phi
        weight = pull * np.mean(np.square(jacobian)) * len(phi) * _penalty(phi) + 1e-12
        inverse = np.linalg.inv(jacobian.T @ jacobian + np.diag(weight))
        step = inverse @ (jacobian.T @ errors - weight * (beta - start))
        before, loss = loss, float(np.square(errors).sum())
        if abs(before - loss) <= 1e-8 * loss:
            break
        beta = beta + step * min(1.0, 2.0 / max(float(np.abs(phi @ step).max()), 1e-12))
    eta = phi @ beta
    errors = values - link.forward(eta)
    jacobian = link.slope(eta)[:, None] * phi
    leverage = np.clip(np.einsum("ij,jk,ik->i", jacobian, inverse, jacobian), 0.0, 1.0 - 1e-6)
    errors = errors / (1.0 - leverage)
    return _Fit(beta, errors, np.asarray(float(np.square(errors).mean()) * inverse))
