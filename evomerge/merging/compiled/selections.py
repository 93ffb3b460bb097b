"""What operators ask about whole tensors: counts of magnitudes, norms and energies of what is kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merging.compiled.elements import BLOCK, MAGNITUDE, as_bits, kernel, times, write_deltas, write_values
from evomerge.merging.compiled.rules import ALL, apply_rules, write_mask, write_variance

FLAGS = 8  # bytes of a word


@kernel
def count_magnitudes(base: Any, others: Any, shift: Any, first: Any, counts: Any, span: Any) -> None:
    """Add to ``counts``, int64 (2, bins), how many magnitudes have the bits ``first + i`` at i, in either row.

    The bits are those of ``|x|`` shifted right by ``shift``; what lies below or above is not counted. Neighbours go to
    different rows: two of them in one bin would wait for each other.
    """
    rows, places = np.empty((others.shape[0] + 3, BLOCK), np.float32), np.zeros(BLOCK + 1, np.uint32)
    bins, lowest = np.uint32(counts.shape[1]), np.uint32(first)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        values = rows[2, :size]
        _subject(base, others, start, rows, values)
        for i in range(size):
            places[i] = np.uint32(((as_bits(values[i]) & MAGNITUDE) >> np.uint32(shift)) - lowest)
        places[size] = bins  # beyond the end, where the size is odd
        for i in range(0, size, 2):
            if places[i] < bins:
                counts[0, places[i]] += 1
            if places[i + 1] < bins:
                counts[1, places[i + 1]] += 1


@kernel
def survey(base: Any, others: Any, values: Any, equal: Any, span: Any) -> Any:
    """Return how many magnitudes have bits above each of ``values``, both int64 (V,); ``span`` begins with a block.

    Write for every block how many have exactly these bits: ``equal`` is int32 (V, blocks).
    """
    rows, keys = np.empty((others.shape[0] + 3, BLOCK), np.float32), np.empty(BLOCK, np.int32)
    above = np.zeros(values.size, np.int64)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        subject = rows[2, :size]
        _subject(base, others, start, rows, subject)
        for i in range(size):
            keys[i] = np.int32(as_bits(subject[i]) & MAGNITUDE)
        for v in range(values.size):
            value, same, more = np.int32(values[v]), np.int32(0), np.int32(0)
            for i in range(size):
                same += np.int32(keys[i] == value)
                more += np.int32(keys[i] > value)
            equal[v, start // BLOCK] = same
            above[v] += more
    return above


@kernel
def collect(base: Any, others: Any, low: Any, high: Any, bits: Any, places: Any, span: Any) -> Any:
    """Write the bits of the magnitudes from ``low`` to ``high``, both included, and their positions, ascending.

    ``bits`` is uint32 (room,), ``places`` int64 (room,), with room for all of them. Return how many there are. Fast
    where they are rare.
    """
    rows, keys = np.empty((others.shape[0] + 3, BLOCK), np.float32), np.empty(BLOCK, np.uint32)
    words = np.zeros(BLOCK // FLAGS, np.uint64)
    inside = words.view(np.uint8)  # eight elements are looked at together
    least, width = np.uint32(low), np.uint32(high - low)
    found = 0
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        values = rows[2, :size]
        _subject(base, others, start, rows, values)
        for i in range(size):
            keys[i] = np.uint32((as_bits(values[i]) & MAGNITUDE) - least)
            inside[i] = np.uint8(keys[i] <= width)
        for word in range(-(-size // FLAGS)):
            if words[word]:
                for i in range(word * FLAGS, min(word * FLAGS + FLAGS, size)):
                    if inside[i]:
                        bits[found], places[found] = np.uint32(keys[i] + least), start + i
                        found += 1
    return found


@kernel
def position_of_tie(base: Any, others: Any, limit: Any, number: Any, span: Any) -> Any:
    """Return the position of the ``number``-th element (from 1) of exactly the magnitude ``limit``; -1 if none."""
    rows = np.empty((others.shape[0] + 3, BLOCK), np.float32)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        values = rows[2, :size]
        _subject(base, others, start, rows, values)
        here = 0
        for i in range(size):
            here += abs(values[i]) == limit
        if here < number:
            number -= here
            continue
        for i in range(size):
            number -= abs(values[i]) == limit
            if number == 0:
                return start + i
    return -1


@kernel
def _subject(base: Any, others: Any, start: Any, rows: Any, out: Any) -> None:
    """Write what is ranked for elements ``start`` and up: the task vector of one expert, the variance over several.

    ``rows`` is float32 (K + 3, BLOCK), overwritten but for the third row.
    """
    size = out.size
    pivot = rows[0, :size]
    write_values(base, start, pivot)
    if others.shape[0] == 1:
        write_deltas(others[0], start, pivot, out)
        return
    for k in range(others.shape[0]):
        write_deltas(others[k], start, pivot, rows[3 + k, :size])
    write_variance(rows, 3, rows[1, :size], out)


@kernel
def kept_norms(base: Any, others: Any, kinds: Any, limits: Any, integers: Any, sums: Any, span: Any) -> None:
    """Add to ``sums``, float64 (2,), the L1 norms of a task vector and of what a rule keeps of it."""
    rows = np.empty((4, BLOCK), np.float32)
    lanes = np.zeros((2, 8))
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        pivot, row = rows[0, :size], rows[1, :size]
        write_values(base, start, pivot)
        write_deltas(others[0], start, pivot, row)
        _lanes(row, lanes[0])
        apply_rules(kinds, limits, integers, start, row, rows[2, :size], rows[3, :size])
        _lanes(row, lanes[1])
    for which in range(2):
        for lane in range(8):
            sums[which] += lanes[which, lane]


@kernel
def energies(base: Any, others: Any, kind: Any, limit: Any, integers: Any, sums: Any, span: Any) -> None:
    """Add to ``sums``, float64 (K,), the squares of the elements whose variance over the task vectors a rule keeps."""
    rows = np.empty((3 + others.shape[0], BLOCK), np.float32)
    mask, lanes = np.empty(BLOCK, np.float32), np.zeros((others.shape[0], 8))
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        pivot, kept = rows[0, :size], mask[:size]
        write_values(base, start, pivot)
        for k in range(others.shape[0]):
            write_deltas(others[k], start, pivot, rows[3 + k, :size])
        if kind != ALL:
            write_variance(rows, 3, rows[1, :size], rows[2, :size])
        write_mask(kind, limit, integers, start, rows[2, :size], kept)
        for k in range(others.shape[0]):
            times(rows[3 + k, :size], kept)
            _square_lanes(rows[3 + k, :size], lanes[k])
    for k in range(others.shape[0]):
        for lane in range(8):
            sums[k] += lanes[k, lane]


@kernel
def _square_lanes(row: Any, lanes: Any) -> None:
    whole = row.size // 8 * 8
    for i in range(0, whole, 8):
        for lane in range(8):
            lanes[lane] += np.float64(row[i + lane]) * np.float64(row[i + lane])
    for i in range(whole, row.size):
        lanes[i - whole] += np.float64(row[i]) * np.float64(row[i])


@kernel
def _lanes(row: Any, lanes: Any) -> None:
    """Add ``|row|`` to eight sums side by side: fast, and in an order that does not depend on the machine."""
    whole = row.size // 8 * 8
    for i in range(0, whole, 8):
        for lane in range(8):
            lanes[lane] += abs(np.float64(row[i + lane]))
    for i in range(whole, row.size):
        lanes[i - whole] += abs(np.float64(row[i]))
