"""Exact order statistics of float32 values that are too many to hold at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

_BITS = 16
_BINS = 1 << _BITS


def order_statistics(pieces: Callable[[], Iterable[Tensor]], ranks: Sequence[int]) -> list[float]:
    """Return the values of these ``ranks`` (0: the smallest) among all elements that ``pieces()`` yields.

    Two passes: a histogram of the upper 16 bits of the values, put in the order of the numbers, then one of the lower
    16 bits within each bin that holds a rank. ``pieces()`` must yield the same float32 values, finite, each time.
    """
    upper = np.zeros(_BINS, dtype=np.int64)
    for piece in pieces():
        upper += _counts(_ordered(piece) >> _BITS)
    ends = np.cumsum(upper)
    bins = [int(np.searchsorted(ends, rank, side="right")) for rank in ranks]
    lower = {place: np.zeros(_BINS, dtype=np.int64) for place in bins}
    for piece in pieces():
        keys = _ordered(piece)
        for place, counts in lower.items():
            counts += _counts(keys[keys >> _BITS == place] & (_BINS - 1))
    found = []
    for place, rank in zip(bins, ranks, strict=True):
        within = rank - int(ends[place - 1] if place else 0)
        low = int(np.searchsorted(np.cumsum(lower[place]), within, side="right"))
        found.append(value_of(place << _BITS | low))
    return found


def _counts(keys: Tensor) -> np.ndarray:
    counts: np.ndarray = torch.bincount(keys, minlength=_BINS).numpy()
    return counts


def _ordered(values: Tensor) -> Tensor:
    """Return int64 keys from 0 to 2^32 - 1 in the order of the float32 ``values``."""
    bits = values.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >= 1 << 31, (1 << 32) - 1 - bits, bits + (1 << 31))


def value_of(key: int) -> float:
    """Return the float32 of a key: see `_ordered`."""
    bits = key - (1 << 31) if key >= 1 << 31 else (1 << 32) - 1 - key
    return float(np.uint32(bits).view(np.float32))
