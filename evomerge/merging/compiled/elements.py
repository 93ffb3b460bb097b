"""Blocks of elements: reading any dtype as float32, writing float32 in any dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic, overload

BLOCK = 2048  # elements; a dozen float32 rows of it stay in the first-level cache
ZERO, ONE = np.float32(0.0), np.float32(1.0)
MAGNITUDE = np.uint32(0x7FFFFFFF)
FLOAT32, BFLOAT16, FLOAT16 = range(3)  # codes of dtypes
_EXPONENT, _QUIET, _HALF = np.uint32(0x7F800000), np.uint32(0x00400000), np.uint32(0x7FFF)
_BFLOAT16_EXPONENT, _FLOAT16_EXPONENT = np.uint16(0x7F80), np.uint16(0x7C00)
_U1, _U16 = np.uint32(1), np.uint32(16)


def kernel(function: Any) -> Any:
    """Compile ``function`` on first use, and keep the result beside the module or in the user's cache folder."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither folder can be written
        return njit(nogil=True)(function)


@intrinsic  # type: ignore[untyped-decorator]
def as_float(context: Any, bits: Any) -> Any:
    """Return the float32 that the uint32 ``bits`` are."""

    def build(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        from llvmlite import ir

        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.uint32), build


@intrinsic  # type: ignore[untyped-decorator]
def as_bits(context: Any, value: Any) -> Any:
    """Return the uint32 that a float32 is."""

    def build(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        from llvmlite import ir

        return builder.bitcast(values[0], ir.IntType(32))

    return types.uint32(types.float32), build


@intrinsic  # type: ignore[untyped-decorator]
def _from_half(context: Any, bits: Any) -> Any:
    def build(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        from llvmlite import ir

        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), build


@intrinsic  # type: ignore[untyped-decorator]
def _to_half(context: Any, value: Any) -> Any:
    def build(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        from llvmlite import ir

        return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), build


@intrinsic  # type: ignore[untyped-decorator]
def pointer_to(context: Any, address: Any) -> Any:
    """Return the pointer that the uint64 ``address`` is."""

    def build(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        from numba.core import cgutils

        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), build


def load(x: Any, i: Any) -> Any:
    """Return element ``i`` of ``x`` as float32: float32, or the bits of bfloat16 (uint16) or float16 (int16)."""
    raise NotImplementedError  # compiled code only


def store(x: Any, i: Any, value: Any) -> None:
    """Write the float32 ``value`` to element ``i`` of ``x``, rounded to nearest, ties to even."""
    raise NotImplementedError  # compiled code only


@overload(load, inline="always")
def _load_for(x, i):  # type: ignore[no-untyped-def]
    if x.dtype == types.uint16:  # bfloat16: the upper half of a float32
        return lambda x, i: as_float(np.uint32(x[i]) << _U16)
    if x.dtype == types.int16:
        return lambda x, i: _from_half(x[i])
    return lambda x, i: x[i]


@overload(store, inline="always")
def _store_for(x, i, value):  # type: ignore[no-untyped-def]
    if x.dtype == types.uint16:

        def rounded(x, i, value):  # type: ignore[no-untyped-def]  # to nearest, ties to even; a NaN stays one
            bits = as_bits(value)
            up = np.uint32(bits + _HALF + ((bits >> _U16) & _U1))
            nan = (bits & MAGNITUDE) > _EXPONENT
            x[i] = np.uint16(((bits | _QUIET) if nan else up) >> _U16)

        return rounded
    if x.dtype == types.int16:
        return lambda x, i, value: _put(x, i, _to_half(value))
    return lambda x, i, value: _put(x, i, value)


def lacks_number(x: Any, i: Any) -> Any:
    """Return 1 if element ``i`` of ``x`` is NaN or infinite, else 0, in its width: short lanes are fastest."""
    raise NotImplementedError  # compiled code only


@overload(lacks_number, inline="always")
def _lacks_number_for(x, i):  # type: ignore[no-untyped-def]
    if x.dtype == types.uint16:
        return lambda x, i: np.uint16((x[i] & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT)
    if x.dtype == types.int16:
        return lambda x, i: np.uint16((np.uint16(x[i]) & _FLOAT16_EXPONENT) == _FLOAT16_EXPONENT)
    return lambda x, i: np.uint32((as_bits(x[i]) & _EXPONENT) == _EXPONENT)


@njit(inline="always")  # type: ignore[untyped-decorator]
def _put(x: Any, i: Any, value: Any) -> None:
    x[i] = value


@kernel
def view_at(address: Any, like: Any, start: Any, stop: Any) -> Any:
    """Return elements ``start`` to ``stop`` of the array of ``like``'s dtype at ``address``."""
    return carray(pointer_to(address), stop, like.dtype)[start:]


@kernel
def widen(source: Any, row: Any) -> None:
    """Write ``source`` as float32 to ``row``."""
    for i in range(row.size):
        row[i] = load(source, i)


@kernel
def write_values(source: Any, start: Any, row: Any) -> None:
    """Write elements ``start`` and up of a source, uint64 (2,): its address and the code of its dtype, to ``row``."""
    stop, pointer = start + row.size, pointer_to(source[0])
    if source[1] == BFLOAT16:
        widen(carray(pointer, stop, np.uint16)[start:], row)
    elif source[1] == FLOAT16:
        widen(carray(pointer, stop, np.int16)[start:], row)
    else:
        widen(carray(pointer, stop, np.float32)[start:], row)


@kernel
def write_deltas(source: Any, start: Any, pivot: Any, row: Any) -> None:
    """Write the same, less ``pivot``."""
    write_values(source, start, row)
    for i in range(row.size):
        row[i] -= pivot[i]


@kernel
def times(row: Any, mask: Any) -> None:
    """Multiply ``row`` by ``mask`` in place."""
    for i in range(row.size):
        row[i] *= mask[i]


@kernel
def finish(total: Any, pivot: Any, scale: Any, out: Any, start: Any) -> Any:
    """Write ``total + scale pivot`` to elements ``start`` and up of ``out``, uint64 (2,), as sources are given.

    Return whether an element is NaN or infinite.
    """
    stop, pointer = start + total.size, pointer_to(out[0])
    if out[1] == BFLOAT16:
        return _write_sum(total, pivot, scale, carray(pointer, stop, np.uint16)[start:])
    if out[1] == FLOAT16:
        return _write_sum(total, pivot, scale, carray(pointer, stop, np.int16)[start:])
    return _write_sum(total, pivot, scale, carray(pointer, stop, np.float32)[start:])


@kernel
def _write_sum(total: Any, pivot: Any, scale: Any, out: Any) -> Any:
    for i in range(total.size):
        store(out, i, total[i] + scale * pivot[i])
    return not_finite(out)


@kernel
def not_finite(out: Any) -> Any:
    """Return 1 if an element of ``out`` is NaN or infinite, else 0."""
    wrong = lacks_number(out, 0)
    for i in range(1, out.size):
        wrong |= lacks_number(out, i)
    return np.uint32(wrong)
