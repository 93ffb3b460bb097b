"""KnOTS: another operator's merge in a basis that all task vectors of a matrix share, prepared once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from evomerge.merging import spectral
from evomerge.merging.coefficients import Kernel, base_of, check_size
from evomerge.merging.kernels import Combination, Scratch
from evomerge.merging.masks import MaskKey
from evomerge.merging.prepared import prepared
from evomerge.merging.selection import SMALL, Selector
from evomerge.merging.virtual import as_kept, key_of, task_matrices
from evomerge.merging.whole import MadeWhole
from search_spaces.operators import DareLinear, DareTies, Knots, Operator, Ties
from search_spaces.recipe import Recipe
from search_spaces.tensors import in_stack

Inner = Callable[..., Kernel]  # `operators.for_tensor`
T = TypeVar("T")
_OF_SMALL, _OF_LARGE = 8 << 20, 1 << 19  # bytes: ranks and draws of every element, or thresholds and histograms


@dataclass(frozen=True)
class InBasis(MadeWhole):
    """``theta_p + scale * U merged``, ``merged`` what a kernel makes of coordinates in the basis U.

    Attributes:
        pivot: position of the base.
        basis: U, float32 (m, r).
        coordinates: of every expert, (K, r d), any float dtype.
        inner: merges ``[0, *coordinates]``.
    """

    pivot: int
    basis: Tensor
    coordinates: Tensor
    inner: Kernel
    scale: float = 1.0

    def make(self) -> Tensor:
        """See `MadeWhole`; one float32 copy of the tensor, two while it is made."""
        merged = torch.empty(self.coordinates.shape[1])
        self.inner.run([torch.zeros_like(self.coordinates[0]), *self.coordinates], merged, Scratch(merged.device))
        return (self.basis @ merged.view(self.basis.shape[1], -1)).view(-1)


def in_shared_basis(
    operator: Knots, recipe: Recipe, name: str, selector: Selector, keys: Sequence[MaskKey], inner: Inner
) -> Kernel:
    """Return the kernel that merges tensor ``name``; ``inner`` gives those of other operators.

    Raises:
        CandidateFailed: the weights cancel, or a source holds NaN or infinite values.
    """
    method = _method(operator)
    if not in_stack(name) or len(selector.shapes[name]) != 2:
        return inner(method.model_copy(update={"scale": operator.scale}), recipe, name, selector=selector, keys=keys)
    key = selector.remember(("knots", recipe.sources), lambda: key_of(_AS_PREPARED, recipe))

    def make_basis() -> Tensor:
        return spectral.shared_basis(task_matrices(operator, recipe, name, selector)).float()

    basis = prepared("knots", key, f"{name}.basis", make_basis)
    if basis.shape[1] == 0:  # no expert has moved
        return Combination(base_of(recipe), 1.0, ())

    def make_coordinates() -> Tensor:
        taus = task_matrices(operator, recipe, name, selector)
        return as_kept([basis.double().T @ tau for tau in taus], name, selector)

    coordinates = prepared("knots", key, name, make_coordinates)
    moved = recipe.model_copy(update={"base": 0, "sources": _in_order(recipe, recipe.sources)})
    most = _most_remembered(selector, coordinates)
    own = selector.remember(("knots", name, recipe.experts), lambda: _selector(coordinates, basis, name, most))
    kernel = inner(method, moved, name, selector=own, keys=_in_order(recipe, keys))
    return InBasis(base_of(recipe), basis, coordinates, kernel, check_size(operator.scale))


_AS_PREPARED = Knots(weights=(1.0,), densities=(1.0,))  # what is prepared is the same for all


def _method(operator: Knots) -> Operator:
    fields = {"weights": operator.weights, "densities": operator.densities, "normalize": operator.normalize}
    if operator.method == "ties":
        return Ties.model_validate(fields)
    kind = DareTies if operator.method == "dare_ties" else DareLinear
    return kind.model_validate(fields | {"rescale": operator.rescale})


def _in_order(recipe: Recipe, values: Sequence[T]) -> tuple[T, ...]:
    """Return ``values``, one per source, those of the base first."""
    return tuple(values[position] for position in (base_of(recipe), *recipe.experts))


def _most_remembered(selector: Selector, coordinates: Tensor) -> int:
    """Return the bytes that may be remembered of one matrix: a search has a selector for each, a limited merge uses
    each once."""
    if selector.cache_bytes is not None:
        return 0
    return _OF_SMALL if coordinates.shape[1] <= SMALL else _OF_LARGE


def _selector(coordinates: Tensor, basis: Tensor, name: str, most: int) -> Selector:
    tensors = [torch.zeros_like(coordinates[0]), *coordinates]
    shape = (basis.shape[1], coordinates.shape[1] // basis.shape[1])
    return Selector([lambda _, tensor=tensor: tensor for tensor in tensors], 0, {name: shape}, most)  # type: ignore[misc]
