"""Which elements of a task vector count: the masks of `keeps` as rules made of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from evomerge.merging.compiled.elements import ONE, ZERO, kernel, pointer_to, times

ALL, LARGE, BELOW, DRAWN = range(4)  # kinds of rules
LAST_TIE, LIMIT, LOW, HIGH, FIELD = range(5)  # a rule's integers
_WEYL, _FIRST, _SECOND = np.uint32(0x9E3779B9), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)  # as in `masks`
_U15, _U16 = np.uint32(15), np.uint32(16)


@kernel
def write_mask(kind: Any, limit: Any, integers: Any, start: Any, delta: Any, mask: Any) -> None:
    """Write 1 or 0 to ``mask`` for elements ``start`` and up, whose task vector is ``delta``."""
    size = delta.size
    if kind == LARGE:
        ties = min(max(integers[LAST_TIE] + 1 - start, 0), size)
        for i in range(ties):
            mask[i] = ONE if abs(delta[i]) >= limit else ZERO
        for i in range(ties, size):
            mask[i] = ONE if abs(delta[i]) > limit else ZERO
    elif kind == BELOW:
        field = carray(pointer_to(np.uint64(integers[FIELD])), start + size, np.int32)[start:]
        below = np.int32(integers[LIMIT])
        for i in range(size):
            mask[i] = ONE if field[i] < below else ZERO
    elif kind == DRAWN:
        low, high, below = np.uint32(integers[LOW]), np.uint32(integers[HIGH]), np.int32(integers[LIMIT])
        first = np.uint32(start)
        for i in range(size):
            v = np.uint32(np.uint32(first + np.uint32(i)) * _WEYL + low)
            v = np.uint32(v ^ (v >> _U16))
            v = np.uint32(np.uint32(v * _FIRST) ^ high)
            v = np.uint32(v ^ (v >> _U15))
            v = np.uint32(v * _SECOND)
            v = np.uint32(v ^ (v >> _U16))
            mask[i] = ONE if np.int32(v) < below else ZERO
    else:
        mask[:] = ONE


@kernel
def apply_rules(kinds: Any, limits: Any, integers: Any, start: Any, delta: Any, mask: Any, spare: Any) -> None:
    """Set ``delta`` to zero where the outer rule does not keep it, or the inner rule does (a NaN stays one)."""
    if kinds[1] == ALL and kinds[0] == ALL:
        return
    plain = start > max(integers[0, LAST_TIE], integers[1, LAST_TIE])  # no ties to tell apart from here on
    if plain and kinds[0] == LARGE and kinds[1] == ALL:
        limit = limits[0]
        for i in range(delta.size):
            delta[i] *= ONE if abs(delta[i]) > limit else ZERO
        return
    if plain and kinds[0] != BELOW and kinds[0] != DRAWN and kinds[1] == LARGE:
        least, most = limits[0] if kinds[0] == LARGE else -ONE, limits[1]
        for i in range(delta.size):
            size = abs(delta[i])
            delta[i] *= ONE if (size > least) & (size <= most) else ZERO
        return
    write_mask(kinds[0], limits[0], integers[0], start, delta, mask)
    if kinds[1] != ALL:
        write_mask(kinds[1], limits[1], integers[1], start, delta, spare)
        for i in range(delta.size):
            mask[i] -= spare[i]
    times(delta, mask)


@kernel
def write_variance(rows: Any, first: Any, mean: Any, out: Any) -> None:
    """See `variance.variance`, over ``rows[first:]``, which are taken three at a time."""
    size, end = out.size, rows.shape[0]
    count, last = np.float32(end - first), end - 1
    mean[:] = ZERO
    for k in range(first, end, 3):
        b, c = rows[min(k + 1, last), :size], rows[min(k + 2, last), :size]
        _add_three(rows[k, :size], b, c, np.float32(k + 1 <= last), np.float32(k + 2 <= last), mean)
    for i in range(size):
        mean[i] /= count
    out[:] = ZERO
    for k in range(first, end, 3):
        b = rows[k + 1, :size] if k + 1 <= last else mean
        c = rows[k + 2, :size] if k + 2 <= last else mean
        _add_squares(rows[k, :size], b, c, mean, out)
    for i in range(size):
        out[i] /= count


@kernel
def _add_three(a: Any, b: Any, c: Any, one: Any, two: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = out[i] + a[i] + one * b[i] + two * c[i]


@kernel
def _add_squares(a: Any, b: Any, c: Any, mean: Any, out: Any) -> None:
    for i in range(out.size):
        x, y, z = a[i] - mean[i], b[i] - mean[i], c[i] - mean[i]
        out[i] = out[i] + x * x + y * y + z * z
