"""From an operator of a recipe and a tensor to the kernel that merges it: the formulas, with their edge cases.

mergekit 0.1.5 gives the same results, with these differences, each where its result is not usable:

* weights that cancel under `normalize` fail the candidate (mergekit divides by a number near zero, or by 1);
* TIES and DARE-TIES with `normalize` divide by the sum of the weights' magnitudes, which is the same for
  weights of one positive sign (see `kernels.Election`);
* Model Stock's share of the mean stays within [0, 1] where cosines are negative, and does not depend on how
  long the task vectors are (mergekit's falls to 0 where the product of their norms is below 1e-6);
* Multi-SLERP whose weighted directions cancel fails the candidate (mergekit stops, or with two models interpolates
  linearly);
* SCE's shares do not depend on how long the task vectors are (mergekit's become equal where the mean squares sum to
  less than 1e-6, which they do in most fine-tuned language models);
* random masks come from a counter-based generator of our own: equal in distribution, not in the draws;
* the arithmetic is float32 whatever the sources are, with one cast at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evomerge.errors import CandidateFailed
from evomerge.merging import (
    calibrated,
    competition,
    elementwise,
    geometry,
    importance,
    interpolation,
    lowrank,
    ota,
    plugged,
    virtual,
    widen,
)
from evomerge.merging.coefficients import Kernel, base_of, check_size, divisor, effective, weighted
from evomerge.merging.kernels import Combination, Election
from evomerge.merging.knots import in_shared_basis
from evomerge.merging.largest import largest
from evomerge.merging.maker import Maker
from evomerge.merging.masks import MaskKey
from evomerge.merging.sce import Fusion
from evomerge.merging.selection import Selector
from evomerge.merging.terms import Term
from search_spaces.canonical import digest
from search_spaces.operators import (
    Breadcrumbs,
    BreadcrumbsTies,
    DareLinear,
    DareTies,
    Della,
    DellaLinear,
    Knots,
    Linear,
    MergeOperator,
    ModelStock,
    MultiSlerp,
    Mwa,
    NuSlerp,
    Operator,
    OperatorPlugIn,
    Passthrough,
    Sce,
    Slerp,
    TaskArithmetic,
    Ties,
)
from search_spaces.recipe import Recipe

_Summed = DareLinear | Breadcrumbs | DellaLinear
_Elected = Ties | DareTies | BreadcrumbsTies | Della
ALIKE = Linear | TaskArithmetic | Mwa  # merge all tensors alike: neighbours can be merged as one
_NEARLY_PARALLEL = 0.9995  # beyond this cosine the spherical formula divides by almost nothing


def whole_run(operator: Operator, recipe: Recipe) -> Kernel | None:
    """Return the kernel of an operator that treats all tensors alike; none for one that looks at each tensor.

    Raises:
        CandidateFailed: the weights cancel.
    """
    if isinstance(operator, Linear):
        return _linear(operator)
    if isinstance(operator, Mwa):
        shares = dict(zip(recipe.experts, operator.shares, strict=True))
        return weighted([shares.get(position, 0.0) for position in range(len(recipe.sources))], total=1.0)
    if isinstance(operator, TaskArithmetic):
        weights = [weight * operator.scale for weight in operator.weights]
        return _combination(recipe, weights, divisor(operator.weights, operator.normalize, "task_arithmetic"))
    return None


def for_tensor(operator: Operator, recipe: Recipe, name: str, *, selector: Selector, keys: Sequence[MaskKey]) -> Kernel:
    """Return the kernel that merges tensor ``name``; ``keys`` are those of the recipe's sources.

    Raises:
        CandidateFailed: the weights cancel.
    """
    if isinstance(operator, _Summed):
        return _sum(recipe, operator, _terms(operator, recipe, name, selector, keys))
    if isinstance(operator, _Elected):
        return _election(recipe, operator, _terms(operator, recipe, name, selector, keys))
    if isinstance(operator, Knots):
        return in_shared_basis(operator, recipe, name, selector, keys, for_tensor)
    if make := _MAKERS.get(type(operator)):
        return make(operator, recipe, name, selector)
    if isinstance(operator, OperatorPlugIn):
        return plugged.make(operator, recipe, name, selector)
    kernel = whole_run(operator, recipe)
    assert kernel is not None
    return kernel


def _linear(operator: Linear) -> Combination:
    total = divisor(operator.weights, operator.normalize, "linear")
    if operator.normalize and not any(operator.weights):
        raise CandidateFailed("linear: all weights are zero, which normalize cannot scale to a sum of 1")
    return weighted([weight / total for weight in operator.weights], total=1.0 if operator.normalize else None)


def _combination(recipe: Recipe, weights: Sequence[float], total: float) -> Combination:
    terms = [Term(source, weight / total) for source, weight in zip(recipe.experts, weights, strict=True)]
    return Combination(base_of(recipe), 1.0, effective(terms))


def _slerp(operator: Slerp, recipe: Recipe, name: str, selector: Selector) -> Combination:
    first, second = operator.between
    t = operator.t
    cosine = min(1.0, max(-1.0, selector.cosine(min(operator.between), max(operator.between), name)))
    if abs(cosine) > _NEARLY_PARALLEL:
        one, two = 1.0 - t, t
    else:
        angle = math.acos(cosine)
        one, two = math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return Combination(first, one + two, effective([Term(second, two)]))


def _sum(recipe: Recipe, operator: _Summed, terms: Sequence[Term]) -> Combination:
    factor = operator.scale / divisor(operator.weights, operator.normalize, operator.kind)
    scaled = [Term(term.source, term.weight * factor, term.keep, term.rescale) for term in terms]
    return Combination(base_of(recipe), 1.0, effective(scaled))


def _election(recipe: Recipe, operator: _Elected, terms: Sequence[Term]) -> Kernel:
    terms = effective(terms)
    if not terms or operator.scale == 0.0:
        return Combination(base_of(recipe), 1.0, ())
    if len(terms) == 1:  # nobody to outvote
        (only,) = terms
        weight = math.copysign(1.0, only.weight) if operator.normalize else only.weight
        return Combination(
            base_of(recipe), 1.0, effective([Term(only.source, weight * operator.scale, only.keep, only.rescale)])
        )
    return Election(base_of(recipe), check_size(operator.scale), operator.normalize, terms)


def _by_products(operator: ModelStock | NuSlerp | MultiSlerp, recipe: Recipe, name: str, selector: Selector) -> Kernel:
    if not isinstance(operator, MultiSlerp) and interpolation.has_vectors(operator, selector.shapes.get(name)):
        return interpolation.by_vectors(operator, recipe, name, selector)
    if isinstance(operator, NuSlerp):
        found = geometry.nuslerp_coefficients(selector.products(operator.between, name), operator.t)
        terms = [Term(source, weight) for source, weight in zip(operator.between, found, strict=True)]
        return Combination(base_of(recipe), 1.0, effective(terms))
    products = selector.products(recipe.experts, name)
    if isinstance(operator, ModelStock):
        share = float(geometry.model_stock_shares(products)) ** operator.power
        return _combination(recipe, [share] * len(recipe.experts), float(len(recipe.experts)))
    weights = np.array(operator.weights) / divisor(operator.weights, operator.normalize, operator.kind)
    coefficients = geometry.multislerp_coefficients(products, weights)
    if coefficients is None:
        raise CandidateFailed(f"multislerp: the weighted directions of the task vectors cancel in tensor {name!r}")
    return _combination(recipe, coefficients.tolist(), 1.0)


def _passthrough(operator: Passthrough, recipe: Recipe, name: str, selector: Selector) -> Combination:
    return Combination(operator.source, check_size(operator.scale), ())


def _fusion(operator: Sce, recipe: Recipe, name: str, selector: Selector) -> Kernel:
    count, keep = selector.varied(recipe.experts, name, operator.select_topk)
    energies = selector.energies(recipe.experts, name, count, keep) if count else ()
    total = math.fsum(energies)
    if total == 0.0:  # nothing is selected, or no expert has moved
        return Combination(base_of(recipe), 1.0, ())
    shares = tuple(energy / total for energy in energies)
    return Fusion(base_of(recipe), recipe.experts, shares, check_size(operator.scale), keep)


def _terms(
    operator: _Summed | _Elected, recipe: Recipe, name: str, selector: Selector, keys: Sequence[MaskKey]
) -> list[Term]:
    """Return what the operator keeps of each task vector."""
    if isinstance(operator, Ties):
        return _trimmed(operator, recipe, name, selector)
    if isinstance(operator, Breadcrumbs | BreadcrumbsTies):
        return _between(operator, recipe, name, selector)
    if isinstance(operator, Della | DellaLinear):
        return _dropped_by_rank(operator, recipe, name, selector, keys)
    return _dropped(operator, recipe, name, selector, keys)


def _trimmed(operator: Ties, recipe: Recipe, name: str, selector: Selector) -> list[Term]:
    shares = zip(recipe.experts, operator.weights, operator.densities, strict=True)
    return [
        Term(source, weight, largest(selector, source, name, density, operator.scope))
        for source, weight, density in shares
        if density > 0.0 and weight != 0.0
    ]


def _between(operator: Breadcrumbs | BreadcrumbsTies, recipe: Recipe, name: str, selector: Selector) -> list[Term]:
    size = selector.size(name)
    terms = []
    shares = zip(recipe.experts, operator.weights, operator.densities, operator.gammas, strict=True)
    for source, weight, density, gamma in shares:
        count = int(density * size)
        if count == 0 or weight == 0.0:
            continue
        skipped = min(int(gamma * size), size - count)
        keep = selector.band(source, name, skipped, count)
        rescaled = operator.rescale and keep is not None
        factor = (
            selector.l1_ratio(source, name, keep, ("band", skipped, count)) if rescaled and keep is not None else 1.0
        )
        terms.append(Term(source, weight, keep, factor))
    return terms


def _dropped(
    operator: DareLinear | DareTies, recipe: Recipe, name: str, selector: Selector, keys: Sequence[MaskKey]
) -> list[Term]:
    """Rescale to the L1 norm before the drop, as mergekit does (the paper's 1/density is its expectation)."""
    terms = []
    for source, weight, density in zip(recipe.experts, operator.weights, operator.densities, strict=True):
        if density <= 0.0 or weight == 0.0:
            continue
        keep = selector.drawn(source, name, density, keys[source])
        rescaled = operator.rescale and keep is not None
        factor = selector.l1_rescale(source, name, keys[source], keep) if rescaled and keep is not None else 1.0
        terms.append(Term(source, weight, keep, factor))
    return terms


def _dropped_by_rank(
    operator: Della | DellaLinear, recipe: Recipe, name: str, selector: Selector, keys: Sequence[MaskKey]
) -> list[Term]:
    terms = []
    shares = zip(recipe.experts, operator.weights, operator.densities, operator.spreads, strict=True)
    for source, weight, density, spread in shares:
        if density <= 0.0 or weight == 0.0:
            continue
        content = selector.remember(("content", recipe.sources, source), lambda s=source: _content(recipe, s))  # type: ignore[misc]
        keep = selector.drawn_by_rank(source, name, density, spread, keys[source], content=content)
        rescaled = operator.rescale and keep is not None
        what = ("by rank", keys[source], density, spread)
        factor = selector.l1_ratio(source, name, keep, what) if rescaled and keep is not None else 1.0
        terms.append(Term(source, weight, keep, factor))
    return terms


def _content(recipe: Recipe, source: int) -> str | None:
    """Return what names base and expert, where both are pinned."""
    digests = [recipe.sources[position].digest for position in (base_of(recipe), source)]
    return digest({"row ranks": digests}) if all(digests) else None


_MAKERS: dict[type[MergeOperator], Maker] = {
    Slerp: _slerp,
    Passthrough: _passthrough,
    **dict.fromkeys((ModelStock, NuSlerp, MultiSlerp), _by_products),
    Sce: _fusion,
    **interpolation.MAKERS,
    **importance.MAKERS,
    **elementwise.MAKERS,
    **competition.MAKERS,
    **virtual.MAKERS,
    **widen.MAKERS,
    **calibrated.MAKERS,
    **lowrank.MAKERS,
    **ota.MAKERS,
}
