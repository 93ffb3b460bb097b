"""Subsets of a tensor's elements, as masks that are made piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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
