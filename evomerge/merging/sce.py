"""SCE's arithmetic: of the elements that differ most between experts, the signs of the majority, by energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging import cpu
from evomerge.merging.keeps import Keep
from evomerge.merging.kernels import Scratch, chunks, finish, float32, part
from evomerge.merging.variance import variance


@dataclass(frozen=True)
class Fusion:
    """``theta_p + scale * sum_i a_i e_i d_i / sum_i a_i e_i``, d_i the selected part of task vector i.

    Attributes:
        pivot: position of the base.
        sources: positions of the experts.
        shares: a_i, one per expert.
        keep: the elements that are selected, told from the variance over the experts; none: all of them.

    e_i is 1 where the sign of d_i is that of the sum of all d, which is positive if it is zero, and 0 elsewhere.
    """

    pivot: int
    sources: tuple[int, ...]
    shares: tuple[float, ...]
    scale: float
    keep: Keep | None

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch, first: int = 0) -> None:
        """Write elements ``first`` and on of the merge of flat ``sources`` (n,), any float dtypes, to ``out``."""
        if scratch.noted(cpu.fuse(sources, out, self.pivot, self.scale, self.sources, self.shares, self.keep, first)):
            return
        for start, stop, target in chunks(out, scratch, first):
            self._chunk([part(source, start, stop) for source in sources], target, (start, stop), scratch)
            scratch.watch(target)

    def _chunk(self, pieces: Sequence[Tensor], target: Tensor, span: tuple[int, int], scratch: Scratch) -> None:
        size = target.numel()
        pivot = float32(pieces[self.pivot], scratch.row(0, size))
        rows = [scratch.row(4 + number, size) for number in range(len(self.sources))]
        for source, row in zip(self.sources, rows, strict=True):
            torch.sub(float32(pieces[source], row), pivot, out=row)
        sign, total, divisor = (scratch.row(number, size) for number in (1, 2, 3))
        if self.keep is not None:
            selected = self.keep.mask(*span, variance(rows), sign)
            for row in rows:
                row.mul_(selected)
        sign.zero_()
        for row in rows:
            sign.add_(row)
        sign.ge_(0.0).mul_(2.0).sub_(1.0)
        total.zero_()
        divisor.zero_()
        for row, share in zip(rows, self.shares, strict=True):
            row.mul_(sign).relu_()
            total.add_(row, alpha=share)
            divisor.add_(row.sign_(), alpha=share)
        total.div_(divisor.masked_fill_(divisor == 0.0, 1.0)).mul_(sign).mul_(self.scale)
        finish(total, pivot, 1.0, target)
