"""Sums of prepared vectors, sums with a coefficient per row or column, and the order within rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merging.compiled.elements import (
    BLOCK,
    MAGNITUDE,
    ONE,
    ZERO,
    as_bits,
    finish,
    kernel,
    write_deltas,
    write_values,
)

_DIGIT, _DIGITS = 11, 1 << 11  # a magnitude has 31 bits: three digits


@kernel
def add_up(base: Any, vectors: Any, out: Any, weights: Any, span: Any) -> Any:
    """See `virtual.Addition`: ``vectors`` are sources, uint64 (K, 2), weights with the scale, float32 (K,)."""
    rows = np.empty((3, BLOCK), np.float32)
    wrong = np.uint32(0)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        pivot, total, row = rows[0, :size], rows[1, :size], rows[2, :size]
        write_values(base, start, pivot)
        total[:] = ZERO
        for k in range(vectors.shape[0]):
            write_values(vectors[k], start, row)
            weight = weights[k]
            for i in range(size):
                total[i] += weight * row[i]
        wrong |= finish(total, pivot, ONE, out, start)
    return wrong


@kernel
def combine_vectors(
    base: Any, others: Any, out: Any, coefficients: Any, by_row: Any, width: Any, scale: Any, span: Any
) -> Any:
    """See `rows.VectorCombination`: ``coefficients`` are float32 (K, vectors), a row has ``width`` elements."""
    rows = np.empty((3, BLOCK), np.float32)
    wrong = np.uint32(0)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        pivot, total, delta = rows[0, :size], rows[1, :size], rows[2, :size]
        write_values(base, start, pivot)
        total[:] = ZERO
        for k in range(others.shape[0]):
            write_deltas(others[k], start, pivot, delta)
            _weigh(delta, coefficients[k], start, by_row, width, total)
        for i in range(size):
            total[i] *= scale
        wrong |= finish(total, pivot, ONE, out, start)
    return wrong


@kernel
def _weigh(delta: Any, coefficients: Any, start: Any, by_row: Any, width: Any, total: Any) -> None:
    place, size = 0, delta.size
    while place < size:
        row = (start + place) // width
        end = min(size, (row + 1) * width - start)
        if by_row:
            coefficient = coefficients[row]
            for i in range(place, end):
                total[i] += coefficient * delta[i]
        else:
            shift = start - row * width
            for i in range(place, end):
                total[i] += coefficients[i + shift] * delta[i]
        place = end


@kernel
def rank_rows(base: Any, others: Any, width: Any, ranks: Any, span: Any) -> None:
    """Write to ``ranks``, uint16 (n,), every element's rank within its row: see `ranked.row_ranks`.

    ``span`` covers whole rows. Stable radix sorts of the magnitudes' bits, digit by digit.
    """
    pivot, delta = np.empty(width, np.float32), np.empty(width, np.float32)
    keys, order, other = np.empty(width, np.uint32), np.empty(width, np.int64), np.empty(width, np.int64)
    counts = np.empty(_DIGITS, np.int64)
    for start in range(span[0], span[1], width):
        write_values(base, start, pivot)
        write_deltas(others[0], start, pivot, delta)
        for i in range(width):
            keys[i] = as_bits(delta[i]) & MAGNITUDE
            order[i] = i
        for shift in range(0, 33, _DIGIT):
            _sort_digit(keys, order, other, counts, np.uint32(shift))
            order, other = other, order
        for place in range(width):
            ranks[start + order[place]] = np.uint16(place)


@kernel
def _sort_digit(keys: Any, order: Any, out: Any, counts: Any, shift: Any) -> None:
    """Write the positions in ``order`` to ``out``, sorted by one digit of their keys, equal ones in their order."""
    mask = np.uint32(_DIGITS - 1)
    counts[:] = 0
    for i in range(keys.size):
        counts[(keys[i] >> shift) & mask] += 1
    before = 0
    for digit in range(_DIGITS):
        here = counts[digit]
        counts[digit] = before
        before += here
    for i in range(order.size):
        place = order[i]
        digit = (keys[place] >> shift) & mask
        out[counts[digit]] = place
        counts[digit] += 1
