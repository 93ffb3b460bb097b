"""From statistics and task vectors to virtual task vectors, tensor by tensor, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_FLOOR = 1e-6  # of the Fisher information, in units of its root mean square
_RIDGE = 1e-6  # on the diagonal of Gram matrices, in units of their mean diagonal


def fisher(taus: Sequence[Tensor], information: Sequence[Tensor], exponent: float) -> list[Tensor]:
    """Return the virtual task vectors of Fisher merging, float64, in the shape of ``taus``.

    ``information`` is each expert's diagonal Fisher information over its root mean square in the whole model.
    """
    shares = [(each.double() + _FLOOR) ** exponent for each in information]
    total = torch.stack(shares).sum(0)
    return [tau * (len(taus) * share / total) for tau, share in zip(taus, shares, strict=True)]


def regmean(taus: Sequence[Tensor], grams: Sequence[Tensor], off_diagonal: float) -> list[Tensor]:
    """Return the virtual task vectors of RegMean, float64 (outputs, inputs) each.

    ``grams`` are the mean outer products of the inputs, (inputs, inputs). If all are zero, the task vectors stay as
    they are.
    """
    mean = sum(float(gram.diagonal().double().mean()) for gram in grams) / len(grams)
    if mean == 0.0:
        return list(taus)
    shrunk = [_shrunk(gram.double(), off_diagonal, _RIDGE * mean) for gram in grams]
    factor = torch.linalg.cholesky(torch.stack(shrunk).sum(0))
    return [len(taus) * torch.cholesky_solve(gram @ tau.T, factor).T for gram, tau in zip(shrunk, taus, strict=True)]


def _shrunk(gram: Tensor, off_diagonal: float, ridge: float) -> Tensor:
    diagonal = gram.diagonal()
    return gram * off_diagonal + torch.diag(diagonal * (1.0 - off_diagonal) + ridge)


def voted(tau: Tensor, votes: Tensor) -> Tensor:
    """Return the elements of ``tau`` that more prompts voted for than against, and zeros, in its shape."""
    return tau * (votes > 0)
