"""Means and interpolations of whole tensors, rows or columns that need inner products and one linear pass."""

from __future__ import annotations

import numpy as np
import torch

from evomerge.errors import CandidateFailed
from evomerge.merging import geometry
from evomerge.merging.coefficients import base_of, check_size, weighted
from evomerge.merging.grid import Grid
from evomerge.merging.kernels import Combination
from evomerge.merging.maker import Maker
from evomerge.merging.rows import VectorCombination, products_by_vector
from evomerge.merging.selection import Selector
from search_spaces.operators import Karcher, MergeOperator, ModelStock, NuSlerp
from search_spaces.recipe import Recipe

_CHUNK = 1 << 16


def karcher(operator: Karcher, recipe: Recipe, name: str, selector: Selector) -> Combination:
    """Return the weighted Karcher mean of the sources' tensors ``name``.

    Raises:
        CandidateFailed: all weights are zero, or the directions have no mean.
    """
    if not any(operator.weights):
        raise CandidateFailed("karcher: all weights are zero, and a mean needs one that is not")
    products = selector.remember(("whole products", name), lambda: _whole_products(selector, name))
    weights = np.array(operator.weights)
    found = geometry.karcher_coefficients(products, weights, steps=operator.max_iter, tol=operator.tol)
    if found is None:
        raise CandidateFailed(f"karcher: the sources point in opposite directions in tensor {name!r}")
    return weighted(found.tolist())


def has_vectors(operator: ModelStock | NuSlerp, shape: tuple[int, ...] | None) -> bool:
    """Whether the operator looks at rows or columns of a tensor of this shape; a tensor of one dimension is one row."""
    asked = operator.filter_wise if isinstance(operator, ModelStock) else operator.vectors != "tensor"
    return asked and shape is not None and len(shape) > 1


def by_vectors(operator: ModelStock | NuSlerp, recipe: Recipe, name: str, selector: Selector) -> VectorCombination:
    """Return Model Stock or NuSLERP with coefficients for every row or column of tensor ``name``."""
    positions = recipe.experts if isinstance(operator, ModelStock) else operator.between
    columns = isinstance(operator, NuSlerp) and operator.vectors == "columns"
    grid = Grid.of("columns" if columns else "rows", selector.shapes[name])
    what = ("products", grid.axis, positions, name)
    products = selector.remember(what, lambda: _products(selector, positions, name, grid))
    if isinstance(operator, ModelStock):
        shares = geometry.model_stock_shares(products) ** operator.power / len(positions)
        coefficients = np.repeat(shares[None], len(positions), axis=0)
    else:
        coefficients = geometry.nuslerp_coefficients(products, operator.t).T
    check_size(float(np.abs(coefficients).max()))
    return VectorCombination(base_of(recipe), positions, torch.from_numpy(coefficients.astype(np.float32)), grid)


def _whole_products(selector: Selector, name: str) -> np.ndarray:
    flat = [source(name) for source in selector.sources]
    total = np.zeros((len(flat), len(flat)))
    for start in range(0, flat[0].numel(), _CHUNK):
        rows = torch.stack([tensor[start : start + _CHUNK].double() for tensor in flat])
        total += (rows @ rows.T).numpy()
    return total


def _products(selector: Selector, positions: tuple[int, ...], name: str, grid: Grid) -> np.ndarray:
    base, others = selector.sources[selector.base](name), [selector.sources[i](name) for i in positions]

    def deltas(start: int, stop: int) -> list[torch.Tensor]:
        return [other[start:stop].float() - base[start:stop].float() for other in others]

    return products_by_vector(deltas, grid, base.numel())


MAKERS: dict[type[MergeOperator], Maker] = {Karcher: karcher}
