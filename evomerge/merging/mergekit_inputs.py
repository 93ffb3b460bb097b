"""What mergekit is told of every model of a slice: the parameters of a recipe's operators in its terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from evomerge.errors import BadRecipe
from evomerge.merging.mergekit_settings import METHODS
from search_spaces.operators import (
    ArceeFusion,
    BreadcrumbsTies,
    DareTies,
    Della,
    DellaLinear,
    Karcher,
    MultiSlerp,
    NearSwap,
    NuSlerp,
    Operator,
    Passthrough,
    Sce,
    Slerp,
    Ties,
)
from search_spaces.recipe import Recipe

_SHARED = {  # our fields, mergekit's parameters
    "normalize": "normalize",
    "scale": "lambda",
    "rescale": "rescale",
    "select_topk": "select_topk",
    "filter_wise": "filter_wise",
    "epsilon": "epsilon",
    "boost": "r",
    "boost_cap": "alpha",
}
_EACH = {"weights": "weight", "densities": "density", "gammas": "gamma", "spreads": "epsilon"}
T = TypeVar("T")
_FIXED = (("sce", "scale", 1.0), ("model_stock", "power", 1.0), ("arcee_fusion", "fence", 1.5))
Rule = tuple[str | None, Operator]


@dataclass(frozen=True)
class Piece:
    """Layers [first, stop) that the same blocks cover, and their operators by mergekit filter (none: everything)."""

    first: int
    stop: int
    rules: tuple[Rule, ...]


def check_expressible(piece: Piece) -> None:
    """Refuse what mergekit cannot express.

    Raises:
        BadRecipe: an operator has a parameter that mergekit's does not have.
    """
    for _, operator in piece.rules:
        _check_parameters(operator)
        if (
            isinstance(operator, Ties | DareTies | BreadcrumbsTies | Della)
            and operator.normalize
            and any(w < 0 for w in operator.weights)
        ):
            raise BadRecipe(
                f"mergekit divides {operator.kind} with normalize by the sum of signed weights, evomerge by that of "
                "their magnitudes: with negative weights there is no such config"
            )


def _check_parameters(operator: Operator) -> None:
    if operator.kind not in METHODS:
        raise BadRecipe(f"mergekit has no {operator.kind}: export the checkpoint or the recipe")
    if isinstance(operator, Della | DellaLinear) and max(operator.spreads) >= 1.0:
        raise BadRecipe(f"mergekit's {operator.kind} needs every spread below 1, got {operator.spreads}")
    if isinstance(operator, Karcher) and len({weight for weight in operator.weights if weight}) > 1:
        raise BadRecipe(f"mergekit's karcher has no weights; the recipe has {operator.weights}")
    if isinstance(operator, Ties) and operator.scope != "tensor":
        raise BadRecipe("mergekit's ties trims every tensor by itself; the recipe has scope 'model'")
    for kind, field, needed in _FIXED:
        if operator.kind == kind and (value := getattr(operator, field)) != needed:
            theirs = _SHARED.get(field, field)
            raise BadRecipe(f"mergekit's {kind} has no {theirs}; the recipe has {field} {value:g}")


def pair_of(piece: Piece) -> tuple[int, int]:
    """Return the two models of slerp or nuslerp, in the order of the sources.

    Raises:
        BadRecipe: the tensors of the piece have different ones.
    """
    pairs = {(min(r.between), max(r.between)) for _, r in piece.rules if isinstance(r, Slerp | NuSlerp)}
    return _same(piece, pairs)


def slerp_base(recipe: Recipe, piece: Piece) -> int:
    """Return the position of the model that mergekit's t counts from."""
    pair = pair_of(piece)
    return recipe.tokenizer if recipe.tokenizer in pair else pair[0]


def inputs_of(recipe: Recipe, piece: Piece) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """Return the parameters of every model of ``piece``, by its position, and those that all share."""
    operator = piece.rules[0][1]
    if isinstance(operator, Slerp):
        base = slerp_base(recipe, piece)
        t = _setting(piece, lambda rule: rule.t if rule.between[0] == base else 1.0 - rule.t)
        return {position: {} for position in pair_of(piece)}, {"t": t}
    if isinstance(operator, NuSlerp):
        return _nuslerp_inputs(recipe, piece), _nuslerp_vectors(piece)
    if isinstance(operator, Karcher):
        return _karcher_inputs(piece), {name: _setting(piece, partial(_field, name)) for name in ("max_iter", "tol")}
    if isinstance(operator, Passthrough | NearSwap | ArceeFusion):
        return _inputs_of_one(recipe, piece, operator)
    return _inputs_of_all(recipe, piece, operator)


def _inputs_of_all(
    recipe: Recipe, piece: Piece, operator: Operator
) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    fields = type(operator).model_fields
    shared = {theirs: _setting(piece, partial(_field, ours)) for ours, theirs in _SHARED.items() if ours in fields}
    if isinstance(operator, MultiSlerp):
        shared["normalize_weights"] = shared.pop("normalize")
    if isinstance(operator, Sce):
        del shared["lambda"]  # it is 1: `check_expressible`
    if shared.get("filter_wise") is False:
        del shared["filter_wise"]
    if operator.per_source:
        positions: Sequence[int] = range(len(recipe.sources))
        inputs: dict[int, dict[str, Any]] = {}
    else:
        assert recipe.base is not None
        positions, inputs = recipe.experts, {recipe.base: {}}
    for number, position in enumerate(positions):
        inputs[position] = {
            theirs: _setting(piece, partial(_share, ours, number)) for ours, theirs in _EACH.items() if ours in fields
        }
    return inputs, shared


def _nuslerp_inputs(recipe: Recipe, piece: Piece) -> dict[int, dict[str, Any]]:
    """mergekit's t is the share of the second of two weights: they are written as 1 - t and t."""
    assert recipe.base is not None
    first, second = pair_of(piece)
    return {
        recipe.base: {},
        first: {"weight": _setting(piece, lambda rule: rule.t if rule.between[1] == first else 1.0 - rule.t)},
        second: {"weight": _setting(piece, lambda rule: rule.t if rule.between[1] == second else 1.0 - rule.t)},
    }


def _nuslerp_vectors(piece: Piece) -> dict[str, Any]:
    if all(rule.vectors == "tensor" for _, rule in piece.rules if isinstance(rule, NuSlerp)):
        return {}
    return {
        "nuslerp_flatten": _setting(piece, lambda rule: rule.vectors == "tensor"),
        "nuslerp_row_wise": _setting(piece, lambda rule: rule.vectors == "columns"),
    }


def _karcher_inputs(piece: Piece) -> dict[int, dict[str, Any]]:
    taken = {
        tuple(i for i, weight in enumerate(rule.weights) if weight)
        for _, rule in piece.rules
        if isinstance(rule, Karcher)
    }
    return {position: {} for position in _same(piece, taken)}


def _inputs_of_one(
    recipe: Recipe, piece: Piece, operator: Passthrough | NearSwap | ArceeFusion
) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    sources = {rule.source for _, rule in piece.rules if isinstance(rule, Passthrough | NearSwap | ArceeFusion)}
    source = _same(piece, sources)
    if isinstance(operator, Passthrough):
        return {source: {"scale": _setting(piece, partial(_field, "scale"))}}, {}
    assert recipe.base is not None
    shared = {"t": _setting(piece, partial(_field, "reach"))} if isinstance(operator, NearSwap) else {}
    return {recipe.base: {}, source: {}}, shared


def _same(piece: Piece, values: set[T]) -> T:
    if len(values) != 1:
        where = f"layers {piece.first} to {piece.stop - 1}"
        kind = piece.rules[0][1].kind
        raise BadRecipe(
            f"mergekit merges the same models in a slice with {kind}, {where} have {sorted(map(str, values))}"
        )
    (value,) = values
    return value


def _field(field: str, operator: Operator) -> Any:
    return getattr(operator, field)


def _share(field: str, number: int, operator: Operator) -> float:
    value = float(getattr(operator, field)[number])
    if isinstance(operator, Della | DellaLinear) and field == "spreads":
        density = operator.densities[number]
        value *= min(density, 1.0 - density)  # mergekit's epsilon is absolute
    return value


def _setting(piece: Piece, value: Callable[[Any], Any]) -> Any:
    values = [(text, value(operator)) for text, operator in piece.rules]
    if len({found for _, found in values}) == 1:
        return values[0][1]
    return [{"value": found} if text is None else {"filter": text, "value": found} for text, found in values]
