"""The arithmetic of merging on flat tensors: two kernels, in chunks, accumulated in float32, cast once.

On the CPU compiled forms of both (`compiled`) do the work where they fit; what is written here is their reference.

Every operation is elementwise, so that a result depends neither on the chunk nor on where in a run a tensor lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging import cpu
from evomerge.merging.terms import Term

_CHUNK_PER_THREAD = 1 << 15  # float32 buffers of this size stay in the second-level cache


class Scratch:
    """Buffers of one engine on one device, float32 (chunk,) each, and the sum that shows non-finite results."""

    def __init__(self, device: torch.device) -> None:
        """Make room for the buffers that both kernels use."""
        self.device = device
        threads = max(2, torch.get_num_threads())
        self.chunk = 1 << 24 if device.type == "cuda" else _CHUNK_PER_THREAD * (1 << (threads - 1).bit_length())
        self.pulse = torch.zeros((), dtype=torch.float32, device=device)
        self._rows: list[Tensor] = []

    def row(self, number: int, size: int) -> Tensor:
        """Return the first ``size`` elements of buffer ``number``."""
        while len(self._rows) <= number:
            self._rows.append(torch.empty(self.chunk, dtype=torch.float32, device=self.device))
        buffer = self._rows[number]
        return buffer if size == self.chunk else buffer[:size]

    def watch(self, out: Tensor) -> None:
        """Take note of ``out``, just written: `healthy` is false if an element was NaN or infinite."""
        if out.dtype is torch.float32:
            self.pulse.add_(out.sum())
        else:
            low, high = torch.aminmax(out)
            self.pulse.add_(low).add_(high)

    def noted(self, finite: bool | None) -> bool:
        """Take note of what a compiled kernel says of its result, and return whether there was one that fits."""
        if finite is False:
            self.pulse.fill_(float("inf"))
        return finite is not None

    def healthy(self) -> bool:
        """Whether all that was watched since the last call was finite (false may also be a very large sum)."""
        value = float(self.pulse)
        self.pulse.zero_()
        return abs(value) < float("inf")


@dataclass(frozen=True)
class Combination:
    """``scale theta_p + sum_i weight_i rescale_i keep_i (theta_i - theta_p)`` with pivot p."""

    pivot: int
    scale: float
    terms: tuple[Term, ...]

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch, first: int = 0) -> None:
        """Write elements ``first`` and on of the combination of flat ``sources`` (n,), any float dtypes, to ``out``."""
        same = self._equal_source()
        if same is None and scratch.noted(cpu.combine(sources, out, self.pivot, self.scale, self.terms, first)):
            return
        for start, stop, target in chunks(out, scratch, first):
            if same is not None:
                target.copy_(part(sources[same], start, stop))
            else:
                self._chunk(sources, target, start, stop, scratch)
            scratch.watch(target)

    def _equal_source(self) -> int | None:
        """The source whose bytes the result repeats exactly, if the coefficients say so."""
        if self.scale != 1.0:
            return None
        if not self.terms:
            return self.pivot
        (first, *others) = self.terms
        return first.source if not others and first.coefficient == 1.0 and first.keep is None else None

    def _chunk(self, sources: Sequence[Tensor], target: Tensor, start: int, stop: int, scratch: Scratch) -> None:
        size = stop - start
        pivot = float32(part(sources[self.pivot], start, stop), scratch.row(0, size))
        total = scratch.row(1, size)
        if not self.terms:
            total.zero_()
        for number, term in enumerate(self.terms):
            buffer = total if number == 0 else scratch.row(2, size)
            delta = _delta(sources[term.source], pivot, term, (start, stop), buffer, scratch.row(3, size))
            if number == 0:
                delta.mul_(term.coefficient)
            else:
                total.add_(delta, alpha=term.coefficient)
        finish(total, pivot, self.scale, target)


@dataclass(frozen=True)
class Election:
    """TIES' consensus: per element the sign of the weighted sum wins and the task vectors with it are merged.

    ``theta_p + scale * sum_{i agrees} x_i [/ sum_{i agrees} |weight_i|]`` with ``x_i = weight_i rescale_i keep_i
    (theta_i - theta_p)``. A sum of zero elects the positive sign. Dividing by ``|weight_i|`` keeps the result
    within the task vectors' range for weights of mixed signs, where the sum of the weights may be near zero.
    """

    pivot: int
    scale: float
    normalize: bool
    terms: tuple[Term, ...]

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch, first: int = 0) -> None:
        """Write elements ``first`` and on of the merge of flat ``sources`` (n,), any float dtypes, to ``out``."""
        if scratch.noted(cpu.elect(sources, out, self.pivot, self.scale, self.normalize, self.terms, first)):
            return
        for start, stop, target in chunks(out, scratch, first):
            self._chunk(sources, target, start, stop, scratch)
            scratch.watch(target)

    def _chunk(self, sources: Sequence[Tensor], target: Tensor, start: int, stop: int, scratch: Scratch) -> None:
        size, count = stop - start, len(self.terms)
        pivot = float32(part(sources[self.pivot], start, stop), scratch.row(0, size))
        sign, total, spare = (scratch.row(number, size) for number in (1, 2, 3))
        rows = [scratch.row(5 + number, size) for number in range(count)]
        sign.zero_()
        for term, row in zip(self.terms, rows, strict=True):
            delta = _delta(sources[term.source], pivot, term, (start, stop), row, spare)
            sign.add_(delta.mul_(term.coefficient))
        sign.ge_(0.0).mul_(2.0).sub_(1.0)
        total.zero_()
        for row in rows:
            total.add_(row.mul_(sign).relu_())
        if self.normalize:
            divisor = scratch.row(4, size).zero_()
            for term, row in zip(self.terms, rows, strict=True):
                divisor.add_(row.sign_(), alpha=abs(term.weight))
            total.div_(divisor.add_(torch.eq(divisor, 0.0, out=spare)))
        total.mul_(sign).mul_(self.scale)
        finish(total, pivot, 1.0, target)


def chunks(out: Tensor, scratch: Scratch, first: int = 0) -> Iterator[tuple[int, int, Tensor]]:
    """Yield start, stop and that part of ``out``, which begins at element ``first``, in steps of the buffers' size."""
    size = out.numel()
    if size <= scratch.chunk:
        yield first, first + size, out
        return
    for start in range(0, size, scratch.chunk):
        stop = min(start + scratch.chunk, size)
        yield first + start, first + stop, out[start:stop]


def part(source: Tensor, start: int, stop: int) -> Tensor:
    """Return elements ``start`` to ``stop`` of ``source``."""
    return source if stop - start == source.numel() else source[start:stop]


def float32(part: Tensor, buffer: Tensor) -> Tensor:
    """Return ``part`` as float32 on the buffer's device: itself if it is, else copied into ``buffer``."""
    if part.dtype is torch.float32 and part.device == buffer.device:
        return part
    return buffer.copy_(part)


def _delta(source: Tensor, pivot: Tensor, term: Term, span: tuple[int, int], buffer: Tensor, spare: Tensor) -> Tensor:
    """Return the kept part of the task vector of ``source``, in ``buffer``; ``spare`` is overwritten."""
    start, stop = span
    torch.sub(float32(part(source, start, stop), buffer), pivot, out=buffer)
    if term.keep is not None:
        buffer.mul_(term.keep.mask(start, stop, buffer, spare))
    return buffer


def finish(total: Tensor, pivot: Tensor, scale: float, target: Tensor) -> None:
    """Write ``total + scale pivot`` to ``target``, cast once; ``total`` is overwritten."""
    if target.dtype is torch.float32:
        torch.add(total, pivot, alpha=scale, out=target)
    else:
        target.copy_(total.add_(pivot, alpha=scale))
