"""From weights to the coefficients of a linear pass, with the checks that every operator needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from evomerge.errors import CandidateFailed
from evomerge.merging.kernels import Combination, Scratch
from evomerge.merging.terms import Term
from search_spaces.recipe import Recipe

_CANCELLED = 1e-6
_LARGEST = float(np.finfo(np.float32).max)


class Kernel(Protocol):
    """What merges one tensor, or several that lie side by side."""

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch, first: int = 0) -> None:
        """Write elements ``first`` and on of the merge of flat ``sources`` (n,), any float dtypes, to ``out`` (m,)."""
        ...


def divisor(weights: Sequence[float], normalize: bool, kind: str) -> float:
    """Return the sum of the weights under `normalize`, 1 otherwise and when there is nothing to divide.

    Raises:
        CandidateFailed: the weights cancel.
    """
    size = math.fsum(abs(weight) for weight in weights)
    if not normalize or size == 0.0:
        return 1.0
    total = math.fsum(weights)
    if abs(total) <= _CANCELLED * size:
        raise CandidateFailed(f"{kind}: the weights {tuple(weights)} cancel, so normalize would divide by {total:g}")
    return total


def effective(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Return the terms that count.

    Raises:
        CandidateFailed: a coefficient is beyond the range of float32.
    """
    for term in terms:
        check_size(term.coefficient)
    return tuple(term for term in terms if term.weight != 0.0)


def check_size(coefficient: float) -> float:
    """Return ``coefficient``.

    Raises:
        CandidateFailed: it is beyond the range of float32.
    """
    if not abs(coefficient) <= _LARGEST:
        raise CandidateFailed(f"a coefficient of the merge, {coefficient:g}, is beyond the range of float32")
    return coefficient


def weighted(coefficients: Sequence[float], *, total: float | None = None) -> Combination:
    """Return ``sum_i c_i theta_i`` over the sources; ``total`` is the sum of the c_i where that is known exactly.

    It pivots on the heaviest source: equal sources then give themselves exactly, and less is rounded away.
    """
    pivot = max(range(len(coefficients)), key=lambda i: abs(coefficients[i]))
    terms = [Term(i, coefficient) for i, coefficient in enumerate(coefficients) if i != pivot]
    return Combination(pivot, check_size(math.fsum(coefficients) if total is None else total), effective(terms))


def base_of(recipe: Recipe) -> int:
    """Return the position of the base, which the recipe has checked for every operator with task vectors."""
    assert recipe.base is not None
    return recipe.base
