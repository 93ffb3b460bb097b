"""The variance over task vectors, element by element: the same numbers wherever they are needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def variance(rows: Sequence[Tensor]) -> Tensor:
    """Return the mean squared deviation over ``rows``, K of float32 (n,), in every element: float32 (n,)."""
    mean = rows[0].clone()
    for row in rows[1:]:
        mean.add_(row)
    mean.div_(len(rows))
    total = torch.zeros_like(mean)
    for row in rows:
        total.add_((row - mean).square_())
    return total.div_(len(rows))
