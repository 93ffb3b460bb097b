"""The three merges: sums, elections and fusions of task vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merging.compiled.elements import (
    BLOCK,
    ONE,
    ZERO,
    finish,
    kernel,
    load,
    not_finite,
    store,
    times,
    view_at,
    write_deltas,
    write_values,
)
from evomerge.merging.compiled.rules import ALL, apply_rules, write_mask, write_variance


@kernel
def combine_few(base: Any, others: Any, out: Any, weights: Any, scale: Any, span: Any) -> Any:
    """See `kernels.Combination`, for three or four terms (weights may be 0) of the base's dtype, without rules."""
    wrong = np.uint32(0)
    for start in range(span[0], span[1], BLOCK):
        stop = min(start + BLOCK, span[1])
        pivot, block = base[start:stop], out[start:stop]
        a, b = view_at(others[0, 0], base, start, stop), view_at(others[1, 0], base, start, stop)
        c = view_at(others[2, 0], base, start, stop)
        if others.shape[0] == 3:
            _sum_of_three(pivot, a, b, c, weights, scale, block)
        else:
            _sum_of_four(pivot, a, b, c, view_at(others[3, 0], base, start, stop), weights, scale, block)
        wrong |= not_finite(block)
    return wrong


@kernel
def _sum_of_three(p: Any, a: Any, b: Any, c: Any, weights: Any, scale: Any, out: Any) -> None:
    """Write ``scale p + sum_k weights_k (x_k - p)`` in one pass, so that memory is most of what it waits for."""
    first, second, third = weights[0], weights[1], weights[2]
    for i in range(out.size):
        pivot = load(p, i)
        total = first * (load(a, i) - pivot) + second * (load(b, i) - pivot)
        total += third * (load(c, i) - pivot)
        store(out, i, total + scale * pivot)


@kernel
def _sum_of_four(p: Any, a: Any, b: Any, c: Any, d: Any, weights: Any, scale: Any, out: Any) -> None:
    """Write the same with one term more."""
    first, second, third, fourth = weights[0], weights[1], weights[2], weights[3]
    for i in range(out.size):
        pivot = load(p, i)
        total = first * (load(a, i) - pivot) + second * (load(b, i) - pivot)
        total += third * (load(c, i) - pivot)
        total += fourth * (load(d, i) - pivot)
        store(out, i, total + scale * pivot)


@kernel
def combine(
    base: Any, others: Any, out: Any, weights: Any, scale: Any, kinds: Any, limits: Any, integers: Any, span: Any
) -> Any:
    """See `kernels.Combination`: elements ``span[0]`` to ``span[1]``; sources and out are uint64 (2,)."""
    rows = np.empty((5, BLOCK), np.float32)
    wrong = np.uint32(0)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        pivot, total, row = rows[0, :size], rows[1, :size], rows[2, :size]
        write_values(base, start, pivot)
        total[:] = ZERO
        for k in range(others.shape[0]):
            write_deltas(others[k], start, pivot, row)
            apply_rules(kinds[k], limits[k], integers[k], start, row, rows[3, :size], rows[4, :size])
            _add(weights[k], row, total)
        wrong |= finish(total, pivot, scale, out, start)
    return wrong


@kernel
def elect(
    base: Any, others: Any, out: Any, weights: Any, shares: Any, scale: Any, normalize: Any, kinds: Any, limits: Any,
    integers: Any, span: Any,
) -> Any:  # fmt: skip
    """See `kernels.Election`; ``shares`` are the magnitudes of the weights before rescaling, float32 (K,)."""
    count = others.shape[0]
    rows = np.empty((6 + count, BLOCK), np.float32)
    wrong = np.uint32(0)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        pivot, total, sign, divisor = rows[0, :size], rows[1, :size], rows[2, :size], rows[3, :size]
        _begin(base, start, pivot, total, sign, divisor)
        for k in range(count):
            row, weight = rows[6 + k, :size], weights[k]
            write_deltas(others[k], start, pivot, row)
            apply_rules(kinds[k], limits[k], integers[k], start, row, rows[4, :size], rows[5, :size])
            _weigh(weight, row, sign)
        _signs(sign)
        for k in range(count):
            _agree(rows[6 + k, :size], sign, ONE, shares[k], total, divisor)
        _settle(total, divisor, sign, scale, normalize)
        wrong |= finish(total, pivot, ONE, out, start)
    return wrong


@kernel
def fuse(
    base: Any, others: Any, out: Any, shares: Any, scale: Any, kinds: Any, limits: Any, integers: Any, span: Any
) -> Any:
    """See `sce.Fusion`; the rule looks at the variance over the task vectors."""
    count = others.shape[0]
    rows = np.empty((7 + count, BLOCK), np.float32)
    wrong = np.uint32(0)
    for start in range(span[0], span[1], BLOCK):
        size = min(BLOCK, span[1] - start)
        pivot, total, sign, divisor = rows[0, :size], rows[1, :size], rows[2, :size], rows[3, :size]
        _begin(base, start, pivot, total, sign, divisor)
        for k in range(count):
            write_deltas(others[k], start, pivot, rows[7 + k, :size])
        if kinds[0, 0] != ALL:
            write_variance(rows, 7, rows[5, :size], rows[6, :size])
            write_mask(kinds[0, 0], limits[0, 0], integers[0, 0], start, rows[6, :size], rows[4, :size])
        for k in range(count):
            _add(ONE, rows[7 + k, :size], sign)
        _signs(sign)
        for k in range(count):
            _agree(rows[7 + k, :size], sign, shares[k], shares[k], total, divisor)
        _settle(total, divisor, sign, scale, True)
        if kinds[0, 0] != ALL:
            times(total, rows[4, :size])
        wrong |= finish(total, pivot, ONE, out, start)
    return wrong


@kernel
def _begin(base: Any, start: Any, pivot: Any, total: Any, sign: Any, divisor: Any) -> None:
    """Read a block of the base, and set to zero what is added up over the task vectors."""
    write_values(base, start, pivot)
    total[:] = ZERO
    sign[:] = ZERO
    divisor[:] = ZERO


@kernel
def _add(weight: Any, row: Any, total: Any) -> None:
    for i in range(row.size):
        total[i] += weight * row[i]


@kernel
def _weigh(weight: Any, row: Any, total: Any) -> None:
    for i in range(row.size):
        row[i] *= weight
        total[i] += row[i]


@kernel
def _signs(row: Any) -> None:
    for i in range(row.size):
        row[i] = ONE if row[i] >= ZERO else -ONE


@kernel
def _agree(row: Any, sign: Any, weight: Any, share: Any, total: Any, divisor: Any) -> None:
    """Add what has the elected sign, as magnitudes."""
    for i in range(row.size):
        value = row[i] * sign[i]
        value = ZERO if value < ZERO else value
        total[i] += weight * value
        divisor[i] += share if value > ZERO else ZERO


@kernel
def _settle(total: Any, divisor: Any, sign: Any, scale: Any, normalize: Any) -> None:
    if normalize:
        for i in range(total.size):
            total[i] /= ONE if divisor[i] == ZERO else divisor[i]
    for i in range(total.size):
        total[i] = total[i] * sign[i] * scale
