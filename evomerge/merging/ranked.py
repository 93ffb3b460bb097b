"""Random masks that keep large elements more often than small ones: DELLA's MagPrune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.masks import threshold

Piece = Callable[[int, int], Tensor]  # values for elements start to stop of a tensor


@dataclass(frozen=True)
class KeepByRank:
    """Elements whose draw, int32, is below the limit of their rank; ``limits`` is int64 (width of a row,)."""

    ranks: Piece
    draws: Piece
    limits: Tensor

    def mask(self, start: int, stop: int, delta: Tensor, out: Tensor) -> Tensor:
        """See `keeps.Keep`."""
        limits = torch.index_select(self.limits, 0, self.ranks(start, stop))
        return out.copy_(torch.lt(self.draws(start, stop), limits))  # made where the sources are: their rows are there


def rank_limits(density: float, spread: float, width: int) -> Tensor:
    """Return the draws below which elements of a row are kept, by their rank from the smallest: int64 (width,).

    The probability grows linearly with the rank, from ``density - eps`` to ``density + eps`` with
    ``eps = spread min(density, 1 - density)``. It grows with the density at every rank, so masks nest. A row of
    one element has no order and keeps it with probability ``density``.
    """
    epsilon = spread * min(density, 1.0 - density)
    place = np.linspace(-1.0, 1.0, width) if width > 1 else np.zeros(1)
    return torch.tensor([threshold(float(share)) for share in density + epsilon * place])


def row_ranks(delta: Tensor, width: int) -> Tensor:
    """Return the rank of every element within its row, by magnitude, 0 the smallest, the first of equals first.

    ``delta`` is float32 (rows * width,); the ranks are int32 of the same shape.
    """
    order = torch.argsort(delta.abs().view(-1, width), dim=1, stable=True)
    ranks = torch.empty(order.shape, dtype=torch.int32, device=delta.device)
    places = torch.arange(width, dtype=torch.int32, device=delta.device).expand(order.shape)
    return ranks.scatter_(1, order, places).view(-1)
