"""From task vectors to virtual ones, matrix by matrix: the linear algebra of the spectral operators, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NOISE = 1e-6  # singular values below this share of the largest are rounding errors, and their vectors arbitrary
_STEPS = 40  # Newton-Schulz steps: singular values down to 1e-6 of the norm converge, rounding errors stay below 1e-8


def tsv_m(taus: Sequence[Tensor], rank: float) -> list[Tensor]:
    """Return the virtual task vectors of TSV-Merge, float64 (m, d) each, of ``taus``, float64 (m, d) each."""
    most = max(1, int(rank * min(taus[0].shape) / len(taus)))
    parts = [_largest(tau, most) for tau in taus]
    left, right = (_polar(torch.cat([part[side] for part in parts], dim=1)) for side in (0, 2))
    sizes = [len(values) for _, values, _ in parts]
    pieces = zip(torch.split(left, sizes, dim=1), parts, torch.split(right, sizes, dim=1), strict=True)
    return [u * values @ v.T for u, (_, values, _), v in pieces]


def iso_c(taus: Sequence[Tensor]) -> list[Tensor]:
    """Return the one virtual task vector of Iso-C, float64 (m, d).

    Its nuclear norm is that of the sum of ``taus``: <polar, sum> = sum of singular values. Cubic Newton-Schulz steps
    give the polar factor; in float64 they leave the null space at zero.
    """
    total = torch.stack(list(taus)).sum(0)
    size = total.norm()
    if size == 0.0:
        return [total]
    wide = total.shape[0] <= total.shape[1]
    polar = (total if wide else total.T) / size
    for _ in range(_STEPS):
        polar = 1.5 * polar - 0.5 * (polar @ polar.T) @ polar
    polar = polar if wide else polar.T
    return [polar * ((polar * total).sum() / min(total.shape))]


def iso_cts(taus: Sequence[Tensor], common: float) -> list[Tensor]:
    """Return the one virtual task vector of Iso-CTS, float64 (m, d)."""
    total = torch.stack(list(taus)).sum(0)
    directions = min(total.shape)
    own = (directions - int(common * directions)) // len(taus)
    parts = [_largest(total, directions - own * len(taus))]
    shared = parts[0][0]
    for tau in taus:
        rest = tau - shared @ (shared.T @ tau)
        if own and rest.norm() > _NOISE * tau.norm():
            parts.append(_largest(rest, own))
    values = torch.cat([part[1] for part in parts])
    if not len(values):
        return [torch.zeros_like(total)]
    left, right = (_polar(torch.cat([part[side] for part in parts], dim=1)) for side in (0, 2))
    return [left @ right.T * values.mean()]


def subspace_boosting(taus: Sequence[Tensor], energy: float) -> list[Tensor]:
    """Return the one virtual task vector of subspace boosting, float64 (m, d)."""
    total = torch.stack(list(taus)).sum(0)
    left, values, right = _largest(total, min(total.shape))
    if not len(values):
        return [torch.zeros_like(total)]
    reached = torch.cumsum(values, 0) >= energy * values.sum() * (1.0 - 1e-12)
    return [left * values.clamp(min=float(values[reached][0])) @ right.T]


def swudi(taus: Sequence[Tensor], rank: float, time: float) -> list[Tensor]:
    """Return the virtual task vectors of WUDI in closed form, float64 (m, d) each."""
    energies = [float(tau.square().sum()) for tau in taus]
    weights = [1.0 / energy if energy else 0.0 for energy in energies]
    gram = sum((w * (tau.T @ tau) for w, tau in zip(weights, taus, strict=True)), torch.zeros(()))
    values, vectors = torch.linalg.eigh(gram)
    kept = slice(len(values) - max(1, int(rank * len(values))), None)
    values, vectors = values[kept].clamp(min=0.0), vectors[:, kept]
    reached = -torch.expm1(-values * time)
    ratio = torch.where(values > 1e-12, reached / values.clamp(min=1e-12), torch.tensor(time, dtype=values.dtype))
    forget, learn = (vectors * reached) @ vectors.T, (vectors * ratio) @ vectors.T
    return [tau - tau @ forget + w * (tau @ (tau.T @ (tau @ learn))) for w, tau in zip(weights, taus, strict=True)]


def opcm(taus: Sequence[Tensor], energy: float) -> list[Tensor]:
    """Return the sum of what OPCM takes of every task vector in its order, float64 (m, d), before it is scaled.

    The scale between two steps changes neither singular vectors nor shares of singular values, so that it can wait.
    """
    merged = taus[0].clone()
    for tau in taus[1:]:
        left, values, right = _largest(merged, min(merged.shape))
        inner = left.T @ tau @ right
        held = int((values.cumsum(0) <= energy * values.sum() * (1.0 + 1e-12)).sum())
        taken = torch.diag(inner.diagonal())
        taken[:held, :held] = inner[:held, :held]
        merged = merged + tau - left @ taken @ right.T
    return [merged]


@dataclass(frozen=True)
class Descent:
    """How DOGE finds what it adds to every task vector: see `operators.Doge`."""

    eta: float
    subspace: int
    iterations: int
    rate: float


def doge(taus: Sequence[Tensor], masks: Sequence[Tensor], descent: Descent) -> list[Tensor]:
    """Return the virtual task vectors of DOGE, float64 (m, d) each; ``masks`` are 1 where an element is kept."""
    norms = [float(tau.norm()) for tau in taus]
    shares = [descent.eta / norm if norm else 0.0 for norm in norms]
    common = sum((share * tau for share, tau in zip(shares, taus, strict=True)), torch.zeros_like(taus[0]))
    total, shared = sum(shares), _shared_directions(taus, descent.subspace)
    added = torch.zeros_like(common)
    optimizer = torch.optim.Adam([added], lr=descent.rate)
    for _ in range(descent.iterations):
        gap = common + total * added
        gradient = torch.zeros_like(gap)
        for tau in taus:
            gradient -= (2.0 * total) * (tau * (tau - gap)).sum(1, keepdim=True) * tau
        added.grad = gradient - shared @ (shared.T @ gradient)
        optimizer.step()
    return [share * mask * (tau + added) for share, mask, tau in zip(shares, masks, taus, strict=True)]


def _shared_directions(taus: Sequence[Tensor], subspace: int) -> Tensor:
    """Return the first 1/``subspace`` left singular vectors, (m, r), of the experts' own largest ones side by side."""
    directions = min(taus[0].shape)
    parts = [_largest(tau, directions // len(taus))[0] for tau in taus]
    return _largest(torch.cat(parts, dim=1), directions // subspace)[0]


def shared_basis(taus: Sequence[Tensor]) -> Tensor:
    """Return U, (m, r) with orthonormal columns, of ``[tau_1 ... tau_K] = U S V^T``, by largest singular value.

    Its columns are eigenvectors of the m x m Gram matrix.
    """
    gram = sum((tau @ tau.T for tau in taus), torch.zeros((), dtype=taus[0].dtype))
    values, vectors = torch.linalg.eigh(gram)
    used = (values > 0.0) & (values > _NOISE**2 * values[-1])
    basis: Tensor = vectors[:, used].flip(1)
    return basis


def _largest(tau: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (m, r), S (r,) and V (d, r) of the at most ``most`` largest singular values that are not noise."""
    left, values, right = torch.linalg.svd(tau, full_matrices=False)
    count = min(most, int((values > _NOISE * values[0]).sum())) if len(values) else 0
    return left[:, :count], values[:count], right[:count].T


def _polar(columns: Tensor) -> Tensor:
    """Return the matrix with orthonormal columns nearest to ``columns``, on the directions that these span."""
    left, values, right = torch.linalg.svd(columns, full_matrices=False)
    used = values > _NOISE * math.sqrt(columns.shape[1])
    polar: Tensor = left[:, used] @ right[used]
    return polar
