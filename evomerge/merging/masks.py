"""Random masks from a counter-based generator.

The draw of an element depends on (mask seed, expert, tensor, position in the tensor) and on nothing else: not on the
chunk, the device, the order or the candidate. A mask keeps the elements whose draw is below a threshold that grows
with the density, so the mask of a smaller density is contained in that of a larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search_spaces.recipe import Source

_HALF = 2**31
_WEYL = 0x9E3779B9 - 2**32
_FIRST = 0x7FEB352D
_SECOND = 0x846CA68B - 2**32


@dataclass(frozen=True)
class MaskKey:
    """What keys the draws of one expert in one recipe."""

    seed: int
    expert: str

    def words(self, tensor: str, block: int) -> tuple[int, int]:
        """Return two signed 32-bit words for elements ``block * 2**31`` and up of ``tensor``."""
        text = f"{self.seed}\0{self.expert}\0{tensor}\0{block}".encode()
        value = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(value[:4], "little", signed=True), int.from_bytes(value[4:], "little", signed=True)


def mask_keys(seed: int, sources: Sequence[Source]) -> tuple[MaskKey, ...]:
    """Return the key of every source: its identity, numbered when the same source is listed more than once."""
    seen: dict[str, int] = {}
    keys = []
    for source in sources:
        number = seen.get(source.identity, 0)
        seen[source.identity] = number + 1
        keys.append(MaskKey(seed, f"{source.identity}#{number}"))
    return tuple(keys)


def threshold(density: float) -> int:
    """Return the signed 32-bit draw below which an element is kept, for a density in (0, 1)."""
    return round(density * 2 * _HALF) - _HALF


def draws(key: MaskKey, tensor: str, start: int, stop: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Return the draws of elements ``start`` to ``stop`` of ``tensor``: int32 (stop - start,), uniform, signed.

    The range may not cross a multiple of 2**31; chunks whose size divides it never do.
    """
    block = start // _HALF
    low, high = key.words(tensor, block)
    first = start - block * _HALF
    value = torch.arange(first, first + stop - start, dtype=torch.int32, device=device)
    value.mul_(_WEYL).add_(low)
    spare = torch.empty_like(value)
    _mix(value, spare, 16, 0xFFFF)
    value.mul_(_FIRST).bitwise_xor_(high)
    _mix(value, spare, 15, 0x1FFFF)
    value.mul_(_SECOND)
    _mix(value, spare, 16, 0xFFFF)
    return value


def _mix(value: Tensor, spare: Tensor, shift: int, low_bits: int) -> None:
    """``value ^= value >> shift`` without the sign; torch has no unsigned shift, hence the mask."""
    torch.bitwise_right_shift(value, shift, out=spare)
    value.bitwise_xor_(spare.bitwise_and_(low_bits))
