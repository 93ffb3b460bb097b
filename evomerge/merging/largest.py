"""The largest elements of a task vector, of each tensor or of the whole model."""

from __future__ import annotations

from evomerge.merging.keeps import Keep, KeepLarge
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
    names = tuple(selector.shapes)
    size = sum(selector.size(each) for each in names)
    (limit,) = selector.magnitudes(source, names, [size - max(1, int(density * size))])
    return KeepLarge(limit, last_tie=2**62)
