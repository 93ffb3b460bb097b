"""Operators with statistics from calibration prompts: virtual task vectors, prepared once like those of `virtual`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from evomerge.merging import statistical, statistics
from evomerge.merging.coefficients import Kernel, base_of, check_size, effective
from evomerge.merging.kernels import Combination
from evomerge.merging.maker import Maker
from evomerge.merging.prepared import prepared
from evomerge.merging.selection import Selector
from evomerge.merging.statistics import Statistic, Statistical
from evomerge.merging.terms import Term
from evomerge.merging.virtual import Addition, as_kept, key_of, parameters_of, task_matrices
from search_spaces.canonical import digest
from search_spaces.operators import Fisher, MergeOperator, Rcp
from search_spaces.recipe import Recipe
from search_spaces.vocabulary import vocabulary_keys


def calibrated(operator: Statistical, recipe: Recipe, name: str, selector: Selector) -> Kernel:
    """Return the kernel that merges tensor ``name``, preparing its virtual task vectors if no one has.

    Tensors that the statistics do not cover are merged by task arithmetic.

    Raises:
        CandidateFailed: a coefficient is beyond the range of float32, or a source is not finite.
        BadRecipe: the calibration prompts, or the statistics that were made of them, are not here.
        NotEnoughRoom: the vectors cannot be written.
    """
    known = (parameters_of(operator), recipe.sources)
    found = selector.remember(("statistics", *known), lambda: statistics.read(operator, recipe))
    if name not in found[-1].files:
        weights = zip(recipe.experts, operator.weights, strict=True)
        return Combination(base_of(recipe), 1.0, effective([Term(i, weight * operator.scale) for i, weight in weights]))
    for weight in operator.weights:
        check_size(weight * operator.scale)
    key = selector.remember(("prepared", *known), lambda: _key(operator, recipe))
    vectors = prepared(
        "virtual", key, name, lambda: as_kept(_vectors(operator, recipe, name, selector, found), name, selector)
    )
    return Addition(base_of(recipe), vectors, operator.weights, operator.scale)


def _key(operator: Statistical, recipe: Recipe) -> str:
    """Embeddings and head, too, are prepared: they follow from the vocabulary."""
    own = key_of(operator, recipe)
    return own if recipe.vocabulary is None else digest([own, *vocabulary_keys(recipe.vocabulary)])


def _vectors(
    operator: Statistical, recipe: Recipe, name: str, selector: Selector, found: Sequence[Statistic]
) -> list[Tensor]:
    """Return the virtual task vectors of a tensor that the statistics cover, in its shape."""
    taus, shape = task_matrices(operator, recipe, name, selector), selector.shapes[name]
    if isinstance(operator, Fisher):
        scaled = [each.tensor(name).view(shape).double() / (each.numbers["rms"] or 1.0) for each in found]
        return statistical.fisher(taus, scaled, operator.exponent)
    if isinstance(operator, Rcp):
        votes = dict(zip((i for i in recipe.experts if i != operator.source), found[1:], strict=True))
        pairs = zip(recipe.experts, taus, strict=True)
        return [statistical.voted(t, votes[i].tensor(name).view(shape)) if i in votes else t for i, t in pairs]
    turned = name in found[0].transposed
    grams = [each.tensor(name) for each in found]
    vectors = statistical.regmean([tau.T if turned else tau for tau in taus], grams, operator.off_diagonal)
    return [vector.T if turned else vector for vector in vectors]


MAKERS: dict[type[MergeOperator], Maker] = dict.fromkeys(get_args(Statistical), calibrated)
