"""Kernels that make all that comes to the base at once, and add it piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from evomerge.merging import cpu
from evomerge.merging.kernels import Scratch, chunks, finish, float32, part


class MadeWhole(ABC):
    """``theta_p + scale * added``.

    Attributes:
        pivot: position of the base.
    """

    pivot: int
    scale: float

    @abstractmethod
    def make(self) -> Tensor:
        """Return what comes to the base, before the scale: float32 (n,)."""

    @cached_property
    def _added(self) -> Tensor:
        return self.make()

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch, first: int = 0) -> None:
        """Write elements ``first`` and on of the merge to ``out``; of ``sources`` only the base is read."""
        if scratch.noted(cpu.add_up(sources[self.pivot], [self._added], out, [self.scale], first)):
            return
        for start, stop, target in chunks(out, scratch, first):
            size = stop - start
            pivot = float32(part(sources[self.pivot], start, stop), scratch.row(0, size))
            total = scratch.row(1, size).copy_(part(self._added, start, stop)).mul_(self.scale)
            finish(total, pivot, 1.0, target)
            scratch.watch(target)
