"""Rows and columns of a flat tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """How a flat tensor falls into vectors.

    Attributes:
        axis: rows lie along the last dimension, columns along the first.
        count: of vectors.
        width: elements of a row.
    """

    axis: Literal["rows", "columns"]
    count: int
    width: int

    @classmethod
    def of(cls, axis: Literal["rows", "columns"], shape: Sequence[int]) -> Grid:
        """Return the grid of a tensor of two dimensions or more."""
        size = int(np.prod(shape))
        if axis == "rows":
            return cls(axis, size // shape[-1], shape[-1])
        return cls(axis, size // shape[0], size // shape[0])

    def vector_of(self, start: int, stop: int) -> Tensor:
        """Return the vector that each of the elements ``start`` to ``stop`` lies in: int64 (stop - start,)."""
        positions = torch.arange(start, stop)
        return positions // self.width if self.axis == "rows" else positions % self.width
