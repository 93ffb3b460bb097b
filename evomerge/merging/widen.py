"""WIDEN: how far every column of a matrix has moved, in norm and direction, decides what its task vectors count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.coefficients import Kernel, base_of, check_size
from evomerge.merging.elementwise import Elementwise
from evomerge.merging.geometry import cosines
from evomerge.merging.grid import Grid
from evomerge.merging.maker import Maker
from evomerge.merging.rows import VectorCombination, products_by_vector
from evomerge.merging.selection import Selector
from search_spaces.operators import MergeOperator, Widen
from search_spaces.recipe import Recipe
from search_spaces.tensors import is_embedding


@dataclass(frozen=True)
class Scored:
    """The sum of task vectors, each times its score: see `Widen` on vectors.

    Attributes:
        limits: ``|tau_i|`` above which an element counts `calibration`, one per expert.
    """

    limits: tuple[float, ...]
    calibration: float

    @property
    def coded(self) -> None:
        """See `elementwise.Rule`: vectors are small."""
        return None

    def merge(self, rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """See `elementwise.Rule`."""
        sizes = torch.stack([row.abs() for row in rows])
        limits = torch.tensor(self.limits, device=sizes.device)[:, None]
        scores = torch.softmax(sizes, dim=0).masked_fill_(sizes > limits, self.calibration)
        return scores.mul_(torch.stack(list(rows))).sum(0)


def widen(operator: Widen, recipe: Recipe, name: str, selector: Selector) -> Kernel:
    """Return the kernel that merges tensor ``name``.

    Raises:
        CandidateFailed: a coefficient is beyond the range of float32.
    """
    shape, experts = selector.shapes[name], recipe.experts
    scale, calibration = check_size(operator.scale), check_size(operator.calibration)
    if len(shape) < 2:
        means = selector.remember(("mean size", experts, name), lambda: _mean_sizes(selector, experts, name))
        limits = tuple(check_size(operator.above * mean) for mean in means)
        return Elementwise(base_of(recipe), experts, Scored(limits, calibration), scale)
    grid = Grid.of("rows" if is_embedding(name) else "columns", shape)
    ranks = selector.remember(("moved vectors", experts, name), lambda: _ranks(selector, experts, name, grid))
    scores = np.exp(ranks) / np.exp(ranks).sum(axis=1, keepdims=True)
    counts_in_full = ranks > operator.above * ranks.mean(axis=2, keepdims=True)
    weights = np.where(counts_in_full, calibration, scores).mean(axis=0)
    return VectorCombination(base_of(recipe), experts, torch.from_numpy(weights.astype(np.float32)), grid, scale)


def _mean_sizes(selector: Selector, experts: Sequence[int], name: str) -> tuple[float, ...]:
    size = selector.size(name)
    return tuple(sum(float(d.abs().double().sum()) for _, _, d in selector.deltas(e, name)) / size for e in experts)


def _ranks(selector: Selector, experts: Sequence[int], name: str, grid: Grid) -> np.ndarray:
    """Return the ranks, from 0 to 1, by change of norm and of direction: float64 (2, experts, vectors)."""
    tensors = [selector.sources[position](name) for position in (selector.base, *experts)]

    def weights(start: int, stop: int) -> list[Tensor]:
        return [tensor[start:stop].float() for tensor in tensors]

    products = products_by_vector(weights, grid, tensors[0].numel())
    norms = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
    moved = np.stack([np.abs(norms[:, 1:] - norms[:, :1]), 1.0 - cosines(products)[:, 0, 1:]]).transpose(0, 2, 1)
    order = np.argsort(moved, axis=2, kind="stable")
    ranks = np.empty_like(moved)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(grid.count) / grid.count, moved.shape), axis=2)
    return ranks


MAKERS: dict[type[MergeOperator], Maker] = {Widen: widen}
