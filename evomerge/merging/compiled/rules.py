"""Which elements of a task vector count: the masks of `keeps` as rules made of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from evomerge.merging.compiled.elements import ONE, ZERO, kernel, pointer_to, times

ALL, LARGE, BELOW, DRAWN, RANKED, IMPORTANT = range(6)  # kinds of rules
LAST_TIE, LIMIT, LOW, HIGH, FIELD, TABLE, WIDTH = range(7)  # a rule's integers
_WEYL, _FIRST, _SECOND = np.uint32(0x9E3779B9), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)  # as in `masks`
_U15, _U16 = np.uint32(15), np.uint32(16)


@kernel
def draw(position: Any, low: Any, high: Any) -> Any:
    """Return the draw, int32, of the element at ``position``, uint32: see `masks.draws`."""
    v = np.uint32(position * _WEYL + low)
    v = np.uint32(v ^ (v >> _U16))
    v = np.uint32(np.uint32(v * _FIRST) ^ high)
    v = np.uint32(v ^ (v >> _U15))
    v = np.uint32(v * _SECOND)
    return np.int32(np.uint32(v ^ (v >> _U16)))


@kernel
def write_mask(kind: Any, limit: Any, integers: Any, start: Any, delta: Any, mask: Any) -> None:
    """Write 1 or 0 to ``mask`` for elements ``start`` and up, whose task vector is ``delta``."""
    if kind == LARGE:
        _write_large(limit, integers, start, delta, mask)
    elif kind == BELOW:
        field = carray(pointer_to(np.uint64(integers[FIELD])), start + delta.size, np.int32)[start:]
        below = np.int32(integers[LIMIT])
        for i in range(delta.size):
            mask[i] = ONE if field[i] < below else ZERO
    elif kind in (DRAWN, RANKED):
        _write_drawn(kind, integers, start, mask)
    elif kind == IMPORTANT:
        _write_important(limit, integers, start, delta, mask)
    else:
        mask[:] = ONE


@kernel
def _write_large(limit: Any, integers: Any, start: Any, delta: Any, mask: Any) -> None:
    ties = min(max(integers[LAST_TIE] + 1 - start, 0), delta.size)
    for i in range(ties):
        mask[i] = ONE if abs(delta[i]) >= limit else ZERO
    for i in range(ties, delta.size):
        mask[i] = ONE if abs(delta[i]) > limit else ZERO


@kernel
def _write_drawn(kind: Any, integers: Any, start: Any, mask: Any) -> None:
    """Compare draws with one limit, or with that of an element's rank in its row."""
    low, high, first = np.uint32(integers[LOW]), np.uint32(integers[HIGH]), np.uint32(start)
    if kind == DRAWN:
        below = np.int32(integers[LIMIT])
        for i in range(mask.size):
            mask[i] = ONE if draw(np.uint32(first + np.uint32(i)), low, high) < below else ZERO
        return
    ranks = carray(pointer_to(np.uint64(integers[FIELD])), start + mask.size, np.uint16)[start:]
    limits = carray(pointer_to(np.uint64(integers[TABLE])), integers[WIDTH], np.int64)
    for i in range(mask.size):
        mask[i] = ONE if draw(np.uint32(first + np.uint32(i)), low, high) < limits[ranks[i]] else ZERO


@kernel
def _write_important(limit: Any, integers: Any, start: Any, delta: Any, mask: Any) -> None:
    width, place, size = integers[WIDTH], 0, delta.size
    rows = carray(pointer_to(np.uint64(integers[FIELD])), (start + size - 1) // width + 1, np.float32)
    while place < size:
        row = (start + place) // width
        end = min(size, (row + 1) * width - start)
        factor = rows[row]
        for i in range(place, end):
            mask[i] = ONE if abs(delta[i]) * factor >= limit else ZERO
        place = end


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
    if plain and (kinds[0] == ALL or kinds[0] == LARGE) and kinds[1] == LARGE:
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
