"""What a block makes of its operator's result: how far it goes from the base, by length and by depth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from evomerge.errors import CandidateFailed
from evomerge.merging.coefficients import Kernel, base_of, check_size, effective
from evomerge.merging.kernels import Combination, Scratch
from evomerge.merging.selection import Selector
from evomerge.merging.terms import Term
from search_spaces.recipe import Block, Recipe
from search_spaces.tensors import in_stack, layer_of

_CHUNK = 1 << 16


def stepped(kernel: Kernel, block: Block, recipe: Recipe, name: str, *, layers: int, selector: Selector) -> Kernel:
    """Return ``kernel`` with the length and the slope of ``block``; it merges tensor ``name`` of a stack of ``layers``.

    Raises:
        CandidateFailed: a length is asked for, and the operator moves the tensor by next to nothing. (Where it leaves
            the tensor at the base, that is where it stays.)
    """
    factor = 1.0
    if block.length is not None:
        factor = block.length * _relative_length(kernel, recipe, name, selector)
    if block.lines is not None:
        place = layer_of(name, layers) / (layers - 1) if in_stack(name) and layers > 1 else 0.0
        factor *= block.lines[0] + block.lines[1] * place
    return kernel if factor == 1.0 else scaled(kernel, check_size(factor), base_of(recipe))


def scaled(kernel: Kernel, factor: float, base: int) -> Kernel:
    """Return a kernel that goes ``factor`` times as far from source ``base``: ``t_0 + factor (merged - t_0)``."""
    if not isinstance(kernel, Combination):
        fields: Any = kernel  # all others start from the base and have a scale
        return cast(Kernel, dataclasses.replace(fields, scale=check_size(fields.scale * factor)))
    terms = [dataclasses.replace(term, weight=term.weight * factor) for term in kernel.terms]
    if kernel.pivot == base and kernel.scale == 1.0:
        return Combination(base, 1.0, effective(terms))
    rest = [] if kernel.pivot == base else [Term(base, 1.0 - factor)]
    return Combination(kernel.pivot, factor * kernel.scale + 1.0 - factor, effective([*terms, *rest]))


def _relative_length(kernel: Kernel, recipe: Recipe, name: str, selector: Selector) -> float:
    """Return the mean norm of the task vectors over the norm of what ``kernel`` adds to the base."""
    experts = recipe.experts
    norms = selector.remember(("norms", experts, name), lambda: _norms(selector, experts, name))
    added = _length_of(kernel, base_of(recipe), name, selector)
    mean = math.fsum(norms) / len(norms)
    if added == 0.0:
        return 1.0  # whatever the factor, there is nothing to multiply
    if added <= 1e-5 * mean:
        raise CandidateFailed(f"length: the operator moves tensor {name!r} by {added:g} only, mostly rounding errors")
    return mean / added


def _norms(selector: Selector, experts: Sequence[int], name: str) -> tuple[float, ...]:
    return tuple(
        math.sqrt(math.fsum(float(delta.double().square().sum()) for _, _, delta in selector.deltas(expert, name)))
        for expert in experts
    )


def _length_of(kernel: Kernel, base: int, name: str, selector: Selector) -> float:
    """Return the norm of what ``kernel`` adds: by inner products where it is linear, else by running it in float32."""
    if isinstance(kernel, Combination) and kernel.pivot == base and kernel.scale == 1.0:
        terms = kernel.terms
        if terms and all(term.keep is None for term in terms):
            weights = np.array([term.weight * term.rescale for term in terms])
            products = selector.products(tuple(term.source for term in terms), name)
            return math.sqrt(max(0.0, float(weights @ products @ weights)))
    sources, scratch = [source(name) for source in selector.sources], Scratch(torch.device("cpu"))
    squares = []
    for number, start in enumerate(torch.split(sources[base], _CHUNK)):
        merged = torch.empty(start.numel())
        kernel.run(sources, merged, scratch, number * _CHUNK)
        squares.append(float((merged.double() - start.double()).square().sum()))
    return math.sqrt(math.fsum(squares))
