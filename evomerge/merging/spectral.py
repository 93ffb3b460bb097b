"""From task vectors to virtual ones, matrix by matrix: the linear algebra of the spectral operators, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def _largest(tau: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (m, r), S (r,) and V (d, r) of the at most ``most`` largest singular values that are not noise."""
    left, values, right = torch.linalg.svd(tau, full_matrices=False)
    count = min(most, int((values > _NOISE * values[0]).sum()))
    return left[:, :count], values[:count], right[:count].T


def _polar(columns: Tensor) -> Tensor:
    """Return the matrix with orthonormal columns nearest to ``columns``, on the directions that these span."""
    left, values, right = torch.linalg.svd(columns, full_matrices=False)
    used = values > _NOISE * math.sqrt(columns.shape[1])
    polar: Tensor = left[:, used] @ right[used]
    return polar
