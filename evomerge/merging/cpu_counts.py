"""What operators ask about whole tensors, answered by the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.compiled import decisions, elements, selections, vectors
from evomerge.merging.cpu import PIECE, Span, read_by, rules_of, spread
from evomerge.merging.keeps import Keep

RARE = 256  # one of so many elements at most is collected: of more, most are equal, and counting them costs less
MOST_COLLECTED = 1 << 21  # elements, 12 bytes each for every thread
SAMPLED = 4096  # elements that tell near which values a threshold lies,
DEVIATIONS = 3  # within so many standard errors of a share, at most a half / sqrt(SAMPLED) each
FREQUENT = 3  # values that one pass looks for at once, besides these two limits


def count_magnitudes(base: Tensor, others: Sequence[Tensor], *, shift: int, first: int, bins: int) -> np.ndarray:
    """Return how many magnitudes have the bits ``first + i`` after a right shift, int64 (bins,).

    The magnitudes are those of one expert's task vector, or the variances over several.
    """
    array, addresses = read_by([base])[0], read_by(others)

    def count(span: Span) -> np.ndarray:
        counts = np.zeros((2, bins), np.int64)
        selections.count_magnitudes(array, addresses, shift, first, counts, span)
        return np.asarray(counts.sum(axis=0))

    return np.asarray(sum(spread(base.numel(), count)))


def pick(base: Tensor, others: Sequence[Tensor], low: int, high: int, *, held: int, wanted: int) -> tuple[float, int]:
    """Return the ``wanted``-th largest magnitude with bits from ``low`` to ``high``, and its position.

    The magnitudes are those of `count_magnitudes`; of equals the first counts first.

    Args:
        low: a number without lower bits, as differences of 16-bit numbers are: where many are equal, it is these.
        held: how many magnitudes have bits from ``low`` to ``high``.
        wanted: from 1 to ``held``.
    """
    if held > base.numel() // RARE:
        (over, beyond), (equal, _) = _survey(base, others, (low, high))
        above = int(over - beyond)
        if wanted > above:
            return as_float(low), _position(base, others, low, wanted - above, equal)
        low, held = low + 1, above
    if held <= _most_collected(base):
        return _pick_of_few(base, others, low, high, held, wanted)
    counts = count_magnitudes(base, others, shift=0, first=low, bins=high - low + 1)
    place, ties = from_the_top(counts, wanted)
    _, (equal,) = _survey(base, others, (low + place,))
    return as_float(low + place), _position(base, others, low + place, ties, equal)


def guess(base: Tensor, other: Tensor, wanted: int) -> tuple[float, int] | None:
    """Return the ``wanted``-th largest magnitude of a task vector and its position, without its histogram; see `pick`.

    A sample tells between which values it lies and which ones of these are frequent, one pass how many elements have
    just these. It is one of them, or one of the few between two of them; None where those are many.
    """
    values = _near(base, other, wanted)
    above, equal = _survey(base, [other], values)
    totals = np.stack([above, above + equal.sum(axis=1)], axis=1)[::-1].ravel()  # from the top: to a value, and with it
    place = int(np.searchsorted(totals, wanted))
    if place in (0, totals.size):
        return None
    number, within = values.size - 1 - place // 2, wanted - int(totals[place - 1])
    value = int(values[number])
    if place % 2:
        return as_float(value), _position(base, [other], value, within, equal[number])
    held = int(totals[place] - totals[place - 1])
    if held > _most_collected(base):
        return None
    return _pick_of_few(base, [other], value + 1, int(values[number + 1]) - 1, held, within)


def _near(base: Tensor, other: Tensor, wanted: int) -> np.ndarray:
    """Return bits of magnitudes, ascending: two between which the ``wanted``-th largest lies almost surely, and those
    between them that a sample finds most often."""
    step = base.numel() // SAMPLED | 1  # odd: rows are mostly multiples of a power of two
    sample = np.sort((other[::step].float() - base[::step].float()).abs_().numpy().view(np.int32))
    place, margin = sample.size - wanted / step, DEVIATIONS / 2 * math.sqrt(sample.size)
    values, counts = np.unique(sample[max(0, int(place - margin)) : int(place + margin) + 1], return_counts=True)
    return np.unique(values[[0, -1, *np.argsort(counts)[-FREQUENT:]]])


def _most_collected(base: Tensor) -> int:
    return min(base.numel() // RARE, MOST_COLLECTED)


def _survey(base: Tensor, others: Sequence[Tensor], values: Sequence[int] | np.ndarray) -> tuple[Any, np.ndarray]:
    """Return how many magnitudes have bits above each of ``values``, and for every block how many have just these."""
    array, addresses, bits = read_by([base])[0], read_by(others), np.array(values, np.int64)
    equal = np.zeros((bits.size, -(-base.numel() // elements.BLOCK)), np.int32)
    above = spread(base.numel(), lambda span: selections.survey(array, addresses, bits, equal, span))
    return np.sum(above, axis=0), equal


def _position(base: Tensor, others: Sequence[Tensor], bits: int, number: int, equal: np.ndarray) -> int:
    """Return the position of the ``number``-th magnitude (from 1) with these bits; ``equal``: how many a block has."""
    block, within = _place_of(equal, number)
    start = block * elements.BLOCK
    span = np.array([start, min(start + elements.BLOCK, base.numel())])
    array, addresses = read_by([base])[0], read_by(others)
    return int(selections.position_of_tie(array, addresses, np.float32(as_float(bits)), within, span))


def as_float(bits: int) -> float:
    """Return the float32 that has these bits."""
    return float(np.uint32(bits).view(np.float32))


def _pick_of_few(
    base: Tensor, others: Sequence[Tensor], low: int, high: int, held: int, wanted: int
) -> tuple[float, int]:
    array, addresses = read_by([base])[0], read_by(others)

    def collect(span: Span) -> tuple[np.ndarray, np.ndarray]:
        bits, places = np.empty(held, np.uint32), np.empty(held, np.int64)
        found = selections.collect(array, addresses, low, high, bits, places, span)
        return bits[:found], places[:found]

    bits, places = (np.concatenate(parts) for parts in zip(*spread(base.numel(), collect), strict=True))
    limit = np.partition(bits, held - wanted)[held - wanted]
    ties = wanted - int(np.count_nonzero(bits > limit))
    return float(limit.view(np.float32)), int(places[bits == limit][ties - 1])


def from_the_top(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """Return the bin that holds the ``wanted``-th largest element, and its number within the bin."""
    place, within = _place_of(counts[::-1], wanted)
    return counts.size - 1 - place, within


def _place_of(counts: np.ndarray, number: int) -> tuple[int, int]:
    """Return the entry of ``counts`` that counts the ``number``-th of all (from 1), and its number within the entry."""
    totals = np.cumsum(counts)
    place = int(np.searchsorted(totals, number))
    return place, number - (int(totals[place - 1]) if place else 0)


def kept_norms(base: Tensor, other: Tensor, keep: Keep) -> tuple[float, float] | None:
    """Return the L1 norms of a task vector and of what ``keep`` keeps of it, None if it does not fit."""
    rules = rules_of([keep], base.numel())
    if rules is None:
        return None
    array, addresses = read_by([base])[0], read_by([other])

    def norms(span: Span) -> np.ndarray:
        sums = np.zeros(2)
        selections.kept_norms(array, addresses, rules.kinds[0], rules.limits[0], rules.integers[0], sums, span)
        return sums

    total, kept = np.asarray(sum(spread(base.numel(), norms, piece=PIECE))).tolist()
    return total, kept


def energies(base: Tensor, others: Sequence[Tensor], keep: Keep | None) -> np.ndarray | None:
    """Return each expert's sum of squares over the elements that ``keep``, told from the variance, keeps: (K,)."""
    rules = rules_of([keep], base.numel())
    if rules is None:
        return None
    array, addresses = read_by([base])[0], read_by(others)

    def squares(span: Span) -> np.ndarray:
        sums = np.zeros(len(others))
        kind, limit = rules.kinds[0, 0], rules.limits[0, 0]
        selections.energies(array, addresses, kind, limit, rules.integers[0, 0], sums, span)
        return sums

    return np.asarray(sum(spread(base.numel(), squares, piece=PIECE)))


def count_moved(base: Tensor, others: Sequence[Tensor], epsilon: float) -> np.ndarray:
    """Return how many elements an expert and others moved by more than ``epsilon``, and it alone: int64 (2, K)."""
    array, sources = read_by([base])[0], read_by(others)

    def count(span: Span) -> np.ndarray:
        counts = np.zeros((2, len(others)), np.int64)
        decisions.count_moved(array, sources, np.float32(epsilon), counts, span)
        return counts

    return np.asarray(sum(spread(base.numel(), count)))


def count_scores(
    base: Tensor, others: Sequence[Tensor], sizes: Sequence[tuple[float, float]], bins: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts, int64 (K, 65536), and the largest keys, uint32 (K,), of PCB's scores.

    Counted are the upper halves of the keys, or in bins that are not negative the lower halves: see
    `compiled.decisions.count_scores`.
    """
    array, sources, limits = read_by([base])[0], read_by(others), np.array(sizes, np.float32)

    def count(span: Span) -> tuple[np.ndarray, np.ndarray]:
        counts, most = np.zeros((len(others), 1 << 16), np.int64), np.zeros(len(others), np.uint32)
        decisions.count_scores(array, sources, limits, np.array(bins, np.int64), counts, most, span)
        return counts, most

    parts = spread(base.numel(), count)
    return np.asarray(sum(part[0] for part in parts)), np.max([part[1] for part in parts], axis=0)


def rank_rows(base: Tensor, other: Tensor, width: int) -> Tensor:
    """Return the rank of every element of a task vector within its row, by magnitude: uint16 (n,)."""
    ranks = np.empty(base.numel(), np.uint16)
    array, sources = read_by([base])[0], read_by([other])
    rows = max(1, PIECE // width)
    spread(base.numel(), lambda span: vectors.rank_rows(array, sources, width, ranks, span), piece=rows * width)
    return torch.from_numpy(ranks)
