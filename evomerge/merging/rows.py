"""Merging where every row, or every column, of a tensor has coefficients of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.merging import cpu
from evomerge.merging.grid import Grid
from evomerge.merging.kernels import Scratch, chunks, finish, float32, part

_CHUNK = 1 << 16


@dataclass(frozen=True)
class VectorCombination:
    """``theta_p + scale * sum_i c_i[v] (theta_i - theta_p)``, v the vector that an element lies in.

    Attributes:
        pivot: position of the base.
        sources: positions of the experts.
        coefficients: c, float32 (experts, vectors).
    """

    pivot: int
    sources: tuple[int, ...]
    coefficients: Tensor
    grid: Grid
    scale: float = 1.0

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch, first: int = 0) -> None:
        """Write elements ``first`` and on of the combination of flat ``sources`` (n,), any float dtypes, to ``out``."""
        by_row, width = self.grid.axis == "rows", self.grid.width
        how = (self.pivot, self.scale, self.sources, self.coefficients)
        if scratch.noted(cpu.combine_vectors(sources, out, *how, by_row=by_row, width=width, first=first)):
            return
        for start, stop, target in chunks(out, scratch, first):
            size = stop - start
            pivot = float32(part(sources[self.pivot], start, stop), scratch.row(0, size))
            total, delta = scratch.row(1, size).zero_(), scratch.row(2, size)
            vectors = self.grid.vector_of(start, stop)
            for source, coefficients in zip(self.sources, self.coefficients, strict=True):
                torch.sub(float32(part(sources[source], start, stop), delta), pivot, out=delta)
                total.addcmul_(delta, coefficients[vectors].to(delta.device))
            finish(total.mul_(self.scale), pivot, 1.0, target)
            scratch.watch(target)


def products_by_vector(deltas: Callable[[int, int], list[Tensor]], grid: Grid, size: int) -> np.ndarray:
    """Return the inner products of task vectors, row by row or column by column: float64 (vectors, K, K).

    ``deltas(start, stop)`` gives those elements of every task vector, float32.
    """
    step = max(1, _CHUNK // grid.width) * grid.width  # whole rows
    found: np.ndarray | None = None
    for start in range(0, size, step):
        stacked = torch.stack([delta.double().view(-1, grid.width) for delta in deltas(start, min(start + step, size))])
        part = torch.einsum("irc,jrc->rij" if grid.axis == "rows" else "irc,jrc->cij", stacked, stacked).numpy()
        if found is None:
            found = np.zeros((grid.count, *part.shape[1:]))
        if grid.axis == "rows":
            found[start // grid.width : start // grid.width + len(part)] = part
        else:
            found += part
    assert found is not None  # no tensor is empty
    return found
