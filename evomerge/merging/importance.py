"""Arcee Fusion: which elements of a task vector stand out, by size and by how much their row has changed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from evomerge.merging.coefficients import base_of, effective
from evomerge.merging.grid import Grid
from evomerge.merging.keeps import KeepImportant
from evomerge.merging.kernels import Combination
from evomerge.merging.maker import Maker
from evomerge.merging.order_statistics import order_statistics
from evomerge.merging.selection import Selector
from evomerge.merging.terms import Term
from search_spaces.operators import ArceeFusion, MergeOperator
from search_spaces.recipe import Recipe

_CHUNK = 1 << 16


def arcee_fusion(operator: ArceeFusion, recipe: Recipe, name: str, selector: Selector) -> Combination:
    """Return the kernel that merges tensor ``name``."""
    grid = Grid.of("rows", selector.shapes.get(name) or (selector.size(name),))
    source = operator.source
    divergence = selector.remember(("divergence", source, name), lambda: _divergence(selector, source, name, grid))
    low, median, high = selector.remember(
        ("quartiles of importance", source, name), lambda: _quartiles(selector, source, name, divergence, grid)
    )
    keep = KeepImportant(divergence, grid, median + operator.fence * (high - low))
    return Combination(base_of(recipe), 1.0, effective([Term(source, 1.0, keep)]))


def _divergence(selector: Selector, source: int, name: str, grid: Grid) -> Tensor:
    """Return ``KL(softmax(theta) || softmax(theta_0))`` of every row, computed in float64: float32 (rows,).

    Rows of a fine-tuned model differ so little that float32 would leave mostly rounding errors.
    """
    base, other = selector.sources[selector.base](name), selector.sources[source](name)
    rows = max(1, _CHUNK // grid.width)
    found = []
    for first in range(0, grid.count, rows):
        span = slice(first * grid.width, min(first + rows, grid.count) * grid.width)
        ours, theirs = (
            torch.log_softmax(tensor[span].double().view(-1, grid.width), dim=-1) for tensor in (other, base)
        )
        found.append((ours.exp() * (ours - theirs)).sum(-1).clamp_(min=0.0))
    return torch.cat(found).float()


def _quartiles(selector: Selector, source: int, name: str, divergence: Tensor, grid: Grid) -> list[float]:
    def importance() -> Iterator[Tensor]:
        for start, stop, delta in selector.deltas(source, name):
            yield delta.abs_().mul_(divergence[grid.vector_of(start, stop)])

    last = selector.size(name) - 1
    return order_statistics(importance, [int(share * last) for share in (0.25, 0.5, 0.75)])


MAKERS: dict[type[MergeOperator], Maker] = {ArceeFusion: arcee_fusion}
