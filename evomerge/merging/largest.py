"""The largest elements of a task vector, of each tensor or of the whole model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from evomerge.merging.keeps import Keep, KeepLarge
from evomerge.merging.order_statistics import order_statistics
from evomerge.merging.selection import Selector
from search_spaces.operators.base import Scope


def names_in(scope: Scope, name: str, selector: Selector) -> tuple[str, ...]:
    """Return the tensors that are looked at together: ``name``, or all of the model."""
    return (name,) if scope == "tensor" else tuple(selector.shapes)


def largest(selector: Selector, source: int, name: str, density: float, scope: Scope) -> Keep | None:
    """Return the ``max(1, int(density n))`` largest elements of n, in the tensor or in the model; none for all of them.

    In a model the ones that equal the smallest kept are kept, too.
    """
    if scope == "tensor" or density >= 1.0:
        return selector.largest(source, name, density)
    limit = selector.remember(("of the model", source, density), lambda: _limit(selector, source, density))
    return KeepLarge(limit, last_tie=2**62)


def _limit(selector: Selector, source: int, density: float) -> float:
    names = tuple(selector.shapes)
    size = sum(selector.size(name) for name in names)

    def magnitudes() -> Iterator[Tensor]:
        for name in names:
            for _, _, delta in selector.deltas(source, name):
                yield torch.abs(delta)

    (limit,) = order_statistics(magnitudes, [size - max(1, int(density * size))])
    return limit
