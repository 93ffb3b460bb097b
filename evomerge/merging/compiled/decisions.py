"""Operators that decide element by element: the rules of `elementwise` and `competition`, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merging.compiled.elements import (
    BLOCK,
    MAGNITUDE,
    ONE,
    ZERO,
    as_bits,
    as_float,
    finish,
    kernel,
    write_deltas,
    write_values,
)
from evomerge.merging.compiled.rules import ALL, write_mask

NEAR, TOUCHED, STRONGEST, AGREED, STITCHED, SIGNS, BALANCED = range(7)  # kinds of rules
_ROWS = 6  # of the buffer before those of the task vectors
_LOG2_E, _LN2_HIGH, _LN2_LOW, _HALF = (np.float32(x) for x in (1.44269504, 0.693359375, -2.12194440e-4, 0.5))
_P0, _P1, _P2, _P3, _P4, _P5 = (  # of exp, after Cephes: to the last bit or two of float32
    np.float32(x)
    for x in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_SMALL, _T3, _T5 = np.float32(0.02), np.float32(1.0 / 3.0), np.float32(2.0 / 15.0)  # tanh x = x - x^3/3 + 2x^5/15


@kernel
def decide(
    rule: Any, base: Any, others: Any, out: Any, table: Any, scale: Any, kinds: Any, limits: Any, integers: Any,
    span: Any,
) -> Any:  # fmt: skip
    """See `elementwise.Elementwise`; ``table``, float32 (K, 5), holds the numbers of the rule for every expert."""
    count = others.shape[0]
    rows = np.empty((_ROWS + count, BLOCK), np.float32)
    wrong = np.uint32(0)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        pivot, total, bad = rows[0, :size], rows[1, :size], rows[2, :size]
        write_values(base, start, pivot)
        bad[:] = ZERO
        for k in range(count):
            write_deltas(others[k], start, pivot, rows[_ROWS + k, :size])
            _add(rows[_ROWS + k, :size], ZERO, bad)  # NaN where an element is not finite: comparing would hide it
        total[:] = ZERO
        if rule == NEAR:
            _near(rows[_ROWS, :size], table[0, 0], total)
        elif rule == TOUCHED:
            _touched(rows, size, table)
        elif rule == STRONGEST:
            for k in range(count):
                _strongest(rows[_ROWS + k, :size], table[k, 0], total)
        elif rule == AGREED:
            _agreed(rows, size, table)
        elif rule == BALANCED:
            _balanced(rows, size, table)
        else:
            _masked(rule, rows, size, table, kinds, limits, integers, start)
        for i in range(size):
            total[i] = total[i] * scale + bad[i]
        wrong |= finish(total, pivot, ONE, out, start)
    return wrong


@kernel
def _add(row: Any, weight: Any, total: Any) -> None:
    for i in range(row.size):
        total[i] += weight * row[i]


@kernel
def _near(row: Any, reach: Any, total: Any) -> None:
    for i in range(row.size):
        total[i] = min(max(row[i], -reach), reach)


@kernel
def _strongest(row: Any, weight: Any, total: Any) -> None:
    for i in range(row.size):
        value = row[i] * weight
        total[i] = value if abs(value) > abs(total[i]) else total[i]


@kernel
def _touched(rows: Any, size: Any, table: Any) -> None:
    """Average the task vectors that moved an element; the only one there is multiplied by its factor."""
    total, moved, factor = rows[1, :size], rows[3, :size], rows[4, :size]
    moved[:] = ZERO
    factor[:] = ZERO
    for k in range(rows.shape[0] - _ROWS):
        row, epsilon, own = rows[_ROWS + k, :size], table[k, 0], table[k, 1]
        for i in range(size):
            mask = ONE if abs(row[i]) > epsilon else ZERO
            moved[i] += mask
            factor[i] += mask * own
            total[i] += mask * row[i]
    for i in range(size):
        total[i] = total[i] * factor[i] if moved[i] == ONE else total[i] / max(moved[i], ONE)


@kernel
def _agreed(rows: Any, size: Any, table: Any) -> None:
    """Keep the weighted sum where enough task vectors are larger than their share of the rest of it."""
    total, count = rows[1, :size], rows[3, :size]
    count[:] = ZERO
    for k in range(rows.shape[0] - _ROWS):
        _add(rows[_ROWS + k, :size], table[k, 0], total)
    for k in range(rows.shape[0] - _ROWS):
        row, selectivity = rows[_ROWS + k, :size], table[k, 1]
        for i in range(size):
            count[i] += ONE if abs(row[i]) > selectivity * abs(total[i] - row[i]) else ZERO
    votes = table[0, 2]
    for i in range(size):
        total[i] *= ONE if count[i] >= votes else ZERO


@kernel
def _masked(rule: Any, rows: Any, size: Any, table: Any, kinds: Any, limits: Any, integers: Any, start: Any) -> None:
    """Add what masks keep: averaged where they overlap, or its signs."""
    total, mask, count, inner = rows[1, :size], rows[3, :size], rows[4, :size], rows[5, :size]
    count[:] = ZERO
    for k in range(rows.shape[0] - _ROWS):
        row, weight = rows[_ROWS + k, :size], table[k, 0]
        write_mask(kinds[k, 0], limits[k, 0], integers[k, 0], start, row, mask)
        if kinds[k, 1] != ALL:
            write_mask(kinds[k, 1], limits[k, 1], integers[k, 1], start, row, inner)
            for i in range(size):
                mask[i] -= inner[i]
        if rule == STITCHED:
            for i in range(size):
                total[i] += weight * (mask[i] * row[i])
                count[i] += mask[i]
        else:
            for i in range(size):
                sign = ONE if row[i] > ZERO else (-ONE if row[i] < ZERO else ZERO)
                total[i] += weight * (mask[i] * sign)
    if rule == STITCHED:
        for i in range(size):
            total[i] /= max(count[i], ONE)


@kernel
def _balanced(rows: Any, size: Any, table: Any) -> None:
    """See `competition.Balanced`: a weight, the limits of the magnitude and those of the score, by expert."""
    total, divisor, score, together = rows[1, :size], rows[3, :size], rows[4, :size], rows[5, :size]
    divisor[:] = ZERO
    together[:] = ZERO
    count = rows.shape[0] - _ROWS
    for k in range(count):
        _add(rows[_ROWS + k, :size], ONE, together)
    for k in range(count):
        row, weight, low, high = rows[_ROWS + k, :size], table[k, 0], table[k, 1], table[k, 2]
        _scores(row, together, low, high, np.float32(count), score)
        first, last = table[k, 3], table[k, 4]
        unit = ONE / (last - first) if last > first else ZERO
        for i in range(size):
            share = (min(max(score[i], first), last) - first) * unit
            sign = ONE if row[i] > ZERO else (-ONE if row[i] < ZERO else ZERO)
            divisor[i] += share
            total[i] += weight * (share * min(max(abs(row[i]), low), high) * sign)
    for i in range(size):
        total[i] /= max(divisor[i], np.float32(1e-12))


@kernel
def _scores(row: Any, together: Any, low: Any, high: Any, count: Any, out: Any) -> None:
    """Write ``exp(count x^2) tanh(row together)`` to ``out``, x being ``|row|`` from ``low`` (0) to ``high`` (1)."""
    unit, largest = ONE / (high - low) if high > low else ZERO, ZERO
    for i in range(row.size):
        out[i] = row[i] * together[i]
        largest = max(largest, abs(out[i]))
    if largest < _SMALL:
        for i in range(row.size):
            x = out[i]
            y = x * x
            out[i] = x * (ONE - y * (_T3 - y * _T5))
    else:
        for i in range(row.size):
            out[i] = np.tanh(out[i])
    for i in range(row.size):
        x = (min(max(abs(row[i]), low), high) - low) * unit
        out[i] *= _exp(count * x * x)


@kernel
def _exp(x: Any) -> Any:
    """Return e^x, float32, for x from 0 to 80."""
    whole = np.int32(x * _LOG2_E + _HALF)
    n = np.float32(whole)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    return (p * r * r + r + ONE) * as_float(np.uint32((whole + np.int32(127)) << np.int32(23)))


@kernel
def count_scores(base: Any, others: Any, limits: Any, bins: Any, counts: Any, most: Any, span: Any) -> None:
    """Count the scores of `_scores`, by expert: int64 (K, 65536).

    Counted are the upper halves of their keys, or the lower halves in the ``bins``, int64 (K,), where these are not
    negative. ``most``, uint32 (K,), takes the largest key. A key is a uint32 in the order of the float32 scores;
    ``limits`` are those of the magnitudes, float32 (K, 2).
    """
    count = others.shape[0]
    rows = np.empty((3 + count, BLOCK), np.float32)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        pivot, together, score = rows[0, :size], rows[1, :size], rows[2, :size]
        write_values(base, start, pivot)
        together[:] = ZERO
        for k in range(count):
            write_deltas(others[k], start, pivot, rows[3 + k, :size])
            _add(rows[3 + k, :size], ONE, together)
        for k in range(count):
            _scores(rows[3 + k, :size], together, limits[k, 0], limits[k, 1], np.float32(count), score)
            for i in range(size):
                bits = as_bits(score[i])
                key = np.uint32(~bits) if bits > MAGNITUDE else np.uint32(bits | np.uint32(0x80000000))
                most[k] = max(most[k], key)
                if bins[k] < 0:
                    counts[k, key >> np.uint32(16)] += 1
                elif np.int64(key >> np.uint32(16)) == bins[k]:
                    counts[k, key & np.uint32(0xFFFF)] += 1


@kernel
def count_moved(base: Any, others: Any, epsilon: Any, counts: Any, span: Any) -> None:
    """Add to ``counts``, int64 (2, K), the elements that an expert moved and others too, and those it moved alone."""
    count = others.shape[0]
    rows = np.empty((2 + count, BLOCK), np.float32)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        pivot, moved = rows[0, :size], rows[1, :size]
        write_values(base, start, pivot)
        moved[:] = ZERO
        for k in range(count):
            row = rows[2 + k, :size]
            write_deltas(others[k], start, pivot, row)
            for i in range(size):
                row[i] = ONE if abs(row[i]) > epsilon else ZERO
                moved[i] += row[i]
        for k in range(count):
            row, shared, alone = rows[2 + k, :size], np.int64(0), np.int64(0)
            for i in range(size):
                shared += np.int64(row[i] * moved[i] > ONE)
                alone += np.int64(row[i] * moved[i] == ONE)
            counts[0, k] += shared
            counts[1, k] += alone
