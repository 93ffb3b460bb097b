"""One tensor of a merge, made piece by piece: what that needs does not grow with the tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.errors import CandidateFailed
from evomerge.merging.coefficients import Kernel
from evomerge.merging.kernels import Scratch

Fill = Callable[[Tensor, int], None]  # writes elements from that position on to a flat tensor, in its dtype


class Piece(NamedTuple):
    """Elements [start, stop) of a tensor and the kernel that merges them."""

    start: int
    stop: int
    kernel: Kernel


class TensorMerge:
    """A tensor of a recipe, not made yet."""

    def __init__(self, what: str, sources: Sequence[Tensor], pieces: Sequence[Piece], scratch: Scratch) -> None:
        """Prepare to merge flat ``sources`` (n,) by ``pieces``, which cover them; ``what`` names it in errors."""
        self._what, self._sources, self._pieces, self._scratch = what, sources, pieces, scratch

    def fill(self, out: Tensor, first: int = 0) -> None:
        """Write elements ``first`` and on to ``out`` (m,), any float dtype.

        Raises:
            CandidateFailed: a result is not finite.
        """
        self.fill_unchecked(out, first)
        if not self._scratch.healthy():
            check_finite(self._what, out)

    def fill_unchecked(self, out: Tensor, first: int = 0) -> None:
        """Do the same; whoever has the scratch asks it whether the result is finite."""
        last = first + out.numel()
        for start, stop, kernel in self._pieces:
            begin, end = max(first, start), min(last, stop)
            if begin < end:
                kernel.run(self._sources, out[begin - first : end - first], self._scratch, begin)


def check_finite(what: str, tensor: Tensor) -> None:
    """Check that there are numbers only.

    Raises:
        CandidateFailed: there is something else.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise CandidateFailed(f"{what} came out with NaN or infinite values")
