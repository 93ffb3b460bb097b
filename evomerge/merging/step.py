"""What a block makes of its operator's result: how far it goes from the base, by length and by depth."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import CandidateFailed
from evomerge.merging import cpu, cpu_counts
from evomerge.merging.coefficients import Kernel, base_of, check_size, effective
from evomerge.merging.distance import squared
from evomerge.merging.kernels import Combination, Scratch
from evomerge.merging.selection import Selector
from evomerge.merging.terms import Term
from search_spaces.recipe import Block, Recipe
from search_spaces.tensors import in_stack, layer_of

_CHUNK = 1 << 20  # elements: every thread has a piece of it, and all of it stays in a cache


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
    norms = np.sqrt(selector.energies(experts, name, selector.size(name), None))
    added = _length_of(kernel, base_of(recipe), name, selector)
    mean = float(norms.mean())
    if added == 0.0:
        return 1.0  # whatever the factor, there is nothing to multiply
    if added <= 1e-5 * mean:
        raise CandidateFailed(f"length: the operator moves tensor {name!r} by {added:g} only, mostly rounding errors")
    return mean / added


def _length_of(kernel: Kernel, base: int, name: str, selector: Selector) -> float:
    """Return the norm of what ``kernel`` adds: by inner products where it is linear, else by running it in float32."""
    if isinstance(kernel, Combination) and all(term.keep is None for term in kernel.terms):
        shares = _shares(kernel, base)
        if not shares:
            return 0.0
        weights, products = np.array(list(shares.values())), selector.products(tuple(shares), name)
        return math.sqrt(max(0.0, float(weights @ products @ weights)))
    sources, scratch = [source(name) for source in selector.sources], Scratch(torch.device("cpu"))
    squares = []
    for number, start in enumerate(torch.split(sources[base], _CHUNK)):
        merged = torch.empty(start.numel())
        kernel.run(sources, merged, scratch, number * _CHUNK)
        squares.append(_squared_distance(start, merged))
    return math.sqrt(math.fsum(squares))


def _shares(kernel: Combination, base: int) -> dict[int, float]:
    """Return the shares of task vectors, and of the base itself, in what a combination of whole sources adds to it."""
    shares = dict.fromkeys(sorted({kernel.pivot, *(term.source for term in kernel.terms)}), 0.0)
    for term in kernel.terms:
        shares[term.source] += term.coefficient
        shares[kernel.pivot] -= term.coefficient
    shares[kernel.pivot] += kernel.scale
    shares[base] = kernel.scale - 1.0  # all shares of models sum up to the scale
    return {source: share for source, share in shares.items() if share}


def _squared_distance(one: Tensor, other: Tensor) -> float:
    squares = cpu_counts.energies(one, [other], None) if cpu.fits([one, other]) else None
    return squared(other, one) if squares is None else float(squares[0])
