"""How far weights are from those of a base."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from evomerge.merging.checkpoint import Checkpoint

_CHUNK = 1 << 22  # elements in double precision at once: 32 MiB


def squared_distance(tensors: Mapping[str, Tensor], base: Checkpoint) -> float:
    """Return the sum over all ``tensors`` of the squared differences to the tensors of the same name in ``base``.

    Added up in double precision where the tensors lie. One pass over both.
    """
    return math.fsum(squared(tensor, base.tensor(name)) for name, tensor in tensors.items())


def squared_norm(base: Checkpoint, names: Mapping[str, Tensor]) -> float:
    """Return the sum of squares of the tensors of ``base`` called like those in ``names``."""
    return math.fsum(squared(base.tensor(name), None) for name in names)


def squared(tensor: Tensor, base: Tensor | None) -> float:
    """Return the sum of squares of ``tensor``, or of its difference from ``base``, in double precision."""
    pieces = torch.split(tensor.reshape(-1), _CHUNK)
    others = [None] * len(pieces) if base is None else torch.split(base.reshape(-1), _CHUNK)
    sums = []
    for piece, other in zip(pieces, others, strict=True):
        wide = piece.double()
        if other is not None:
            wide -= other.to(wide.device).double()
        sums.append(float(wide.square().sum()))
    return math.fsum(sums)
