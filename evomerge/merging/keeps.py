"""Subsets of a tensor's elements, as masks that are made piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evomerge.merging.grid import Grid
from evomerge.merging.masks import MaskKey, draws


class Keep(Protocol):
    """A subset of the elements of one tensor."""

    def mask(self, start: int, stop: int, delta: Tensor, out: Tensor) -> Tensor:
        """Write to ``out``, float32 (stop - start,), 1 where an element is kept and 0 elsewhere, and return it.

        ``delta`` is the task vector there. On the CPU float masks are several times faster than boolean ones.
        """
        ...


@dataclass(frozen=True)
class KeepBelow:
    """Elements whose remembered rank or draw, int32 (n,), is below a limit."""

    field: Tensor
    limit: int

    def mask(self, start: int, stop: int, delta: Tensor, out: Tensor) -> Tensor:
        """See `Keep`."""
        part = self.field if stop - start == self.field.numel() else self.field[start:stop]
        return torch.lt(part.to(out.device), self.limit, out=out)


@dataclass(frozen=True)
class KeepLarge:
    """Elements larger in magnitude than a threshold, and those equal to it up to position ``last_tie``."""

    threshold: float
    last_tie: int

    def mask(self, start: int, stop: int, delta: Tensor, out: Tensor) -> Tensor:
        """See `Keep`."""
        torch.abs(delta, out=out)
        ties = max(0, min(stop, self.last_tie + 1) - start)
        out[:ties].ge_(self.threshold)
        out[ties:].gt_(self.threshold)
        return out


@dataclass(frozen=True)
class KeepBand:
    """Elements of ``outer`` (none: all) that are not among those of ``inner``, which it contains."""

    outer: Keep | None
    inner: Keep

    def mask(self, start: int, stop: int, delta: Tensor, out: Tensor) -> Tensor:
        """See `Keep`."""
        taken = self.inner.mask(start, stop, delta, torch.empty_like(out))
        out = out.fill_(1.0) if self.outer is None else self.outer.mask(start, stop, delta, out)
        return out.sub_(taken)


@dataclass(frozen=True)
class KeepDrawn:
    """Elements of ``tensor`` whose draw is below a limit."""

    key: MaskKey
    tensor: str
    limit: int

    def mask(self, start: int, stop: int, delta: Tensor, out: Tensor) -> Tensor:
        """See `Keep`."""
        return torch.lt(draws(self.key, self.tensor, start, stop, device=out.device), self.limit, out=out)


@dataclass(frozen=True)
class KeepRanked:
    """Elements of ``tensor`` whose draw is below the limit of their rank within their row.

    Attributes:
        field: the ranks, uint16 (n,).
        limits: int64 (width of a row,).
    """

    key: MaskKey
    tensor: str
    field: Tensor
    limits: Tensor

    def mask(self, start: int, stop: int, delta: Tensor, out: Tensor) -> Tensor:
        """See `Keep`."""
        limits = torch.index_select(self.limits, 0, self.field[start:stop].int())
        return out.copy_(torch.lt(draws(self.key, self.tensor, start, stop), limits))


@dataclass(frozen=True)
class KeepImportant:
    """Elements with ``|delta| divergence[row] >= limit``; ``divergence`` is float32 (rows,)."""

    divergence: Tensor
    grid: Grid
    limit: float

    def mask(self, start: int, stop: int, delta: Tensor, out: Tensor) -> Tensor:
        """See `Keep`."""
        factor = self.divergence[self.grid.vector_of(start, stop)].to(out.device)
        return torch.abs(delta, out=out).mul_(factor).ge_(self.limit)
