"""From a recipe to a mergekit config that merges the same model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from evomerge.errors import BadRecipe
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.sources import resolve
from search_spaces.operators import (
    BreadcrumbsTies,
    DareTies,
    Della,
    DellaLinear,
    Linear,
    ModelStock,
    MultiSlerp,
    NuSlerp,
    Operator,
    Sce,
    Slerp,
    Ties,
)
from search_spaces.patterns import matches
from search_spaces.recipe import Block, Blocks, Recipe, Source
from search_spaces.tensors import layer_of
from search_spaces.tiles import MosaicBody

_DRAWS = "# mergekit draws other random masks: an equally distributed model, not the same bytes.\n"
_SHARED = {  # our fields, mergekit's parameters
    "normalize": "normalize",
    "scale": "lambda",
    "rescale": "rescale",
    "select_topk": "select_topk",
}
_EACH = {"weights": "weight", "densities": "density", "gammas": "gamma", "spreads": "epsilon"}
_Rule = tuple[str | None, Operator]


@dataclass(frozen=True)
class _Piece:
    """Layers [first, stop) that the same blocks cover, and their operators by mergekit filter (none: everything)."""

    first: int
    stop: int
    rules: tuple[_Rule, ...]


def to_mergekit(recipe: Recipe) -> str:
    """Return a mergekit config (YAML) for ``recipe``; the tokenizer's source is opened for its layers and tensors.

    It computes in float32 and casts once, as evomerge does.

    Raises:
        BadRecipe: mergekit cannot express the recipe; the text says what.
        BadSource: the source cannot be opened.
    """
    if isinstance(recipe.body, MosaicBody):
        raise BadRecipe(
            "mergekit cannot express a mosaic, whose coefficients change inside tensors; export it as a checkpoint, or "
            "as a recipe for `evomerge merge`"
        )
    source = recipe.sources[recipe.tokenizer]
    checkpoint = Checkpoint.open(resolve(source.path, source.revision))
    names, layers = mergeable_names(checkpoint), checkpoint.layers
    pieces = _pieces(recipe.body, names, layers)
    kinds = sorted({operator.kind for piece in pieces for _, operator in piece.rules})
    if len(kinds) > 1:
        raise BadRecipe(f"mergekit knows one merge_method a config, and the recipe has {', '.join(kinds)}")
    for piece in pieces:
        _check_expressible(piece)
    base = _base(recipe, pieces)
    value: dict[str, Any] = {"merge_method": kinds[0], "base_model": _reference(recipe.sources[base])}
    if len(pieces) == 1:
        inputs, parameters = _inputs(recipe, pieces[0])
        value["models"] = [_entry(recipe, position, settings) for position, settings in inputs.items()]
        if parameters:
            value["parameters"] = parameters
    else:
        value["slices"] = [_slice(recipe, piece, base) for piece in pieces]
    value |= {"dtype": "float32", "out_dtype": recipe.dtype}
    if recipe.tokenizer != base:
        value["tokenizer_source"] = _reference(source)
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    return (_DRAWS if kinds[0].startswith(("dare", "della")) else "") + text


def _pieces(body: Blocks, names: Sequence[str], layers: int) -> list[_Piece]:
    cuts = {0, layers} | {min(end, layers) for block in body.blocks for end in block.layers}
    ordered = sorted(cuts)
    pieces: list[_Piece] = []
    for first, stop in zip(ordered, ordered[1:], strict=False):
        inside = [name for name in names if first <= layer_of(name, layers) < stop]
        covering = [block for block in body.blocks if block.layers[0] <= first and stop <= block.layers[1]]
        rules = _rules(covering, inside)
        if pieces and pieces[-1].rules == rules:
            pieces[-1] = _Piece(pieces[-1].first, stop, rules)
        else:
            pieces.append(_Piece(first, stop, rules))
    return pieces


def _rules(blocks: Sequence[Block], names: Sequence[str]) -> tuple[_Rule, ...]:
    rules: list[_Rule] = []
    left = set(names)
    for block in blocks:
        for pattern in block.tensors:
            matched = {name for name in names if matches(name, (pattern,))}
            if not matched & left:
                continue
            if matched >= left:
                return (*rules, (None, block.operator))
            rules += [(text, block.operator) for text in _filters(pattern, matched, names)]
            left -= matched
    raise BadRecipe(f"no block of the recipe covers tensor {sorted(left)[0]!r}")


def _filters(pattern: str, matched: set[str], names: Sequence[str]) -> list[str]:
    """Return texts such that the ``names`` which contain one of them are those that ``pattern`` matches."""
    pieces = sorted(re.split(r"[*?]|\[[^]]*\]", pattern), key=len, reverse=True)
    for text in pieces:
        if text and {name for name in names if text in name} == matched:
            return [text]
    whole = sorted(matched)
    if {name for name in names if any(text in name for text in whole)} == matched:
        return whole
    raise BadRecipe(f"mergekit's filters, which are parts of names, cannot express the pattern {pattern!r}")


def _check_expressible(piece: _Piece) -> None:
    for _, operator in piece.rules:
        if isinstance(operator, Della | DellaLinear) and max(operator.spreads) >= 1.0:
            raise BadRecipe(f"mergekit's {operator.kind} needs every spread below 1, got {operator.spreads}")
        if isinstance(operator, Sce) and operator.scale != 1.0:
            raise BadRecipe(f"mergekit's sce has no lambda; the recipe has scale {operator.scale:g}")
        if isinstance(operator, ModelStock) and operator.power != 1.0:
            raise BadRecipe(f"mergekit's model_stock has no power; the recipe has power {operator.power:g}")
        if (
            isinstance(operator, Ties | DareTies | BreadcrumbsTies | Della)
            and operator.normalize
            and any(w < 0 for w in operator.weights)
        ):
            raise BadRecipe(
                f"mergekit divides {operator.kind} with normalize by the sum of signed weights, evomerge by that of "
                "their magnitudes: with negative weights there is no such config"
            )


def _base(recipe: Recipe, pieces: Sequence[_Piece]) -> int:
    """Return the position of base_model, from which mergekit also takes config and tokenizer."""
    operator = pieces[0].rules[0][1]
    if isinstance(operator, Linear):
        return recipe.tokenizer
    if isinstance(operator, Slerp):
        pairs = [_pair(piece) for piece in pieces]
        return recipe.tokenizer if all(recipe.tokenizer in pair for pair in pairs) else pairs[0][0]
    assert recipe.base is not None  # the recipe checks it
    return recipe.base


def _pair(piece: _Piece) -> tuple[int, int]:
    pairs = {tuple(sorted(rule.between)) for _, rule in piece.rules if isinstance(rule, Slerp | NuSlerp)}
    if len(pairs) != 1:
        where = f"layers {piece.first} to {piece.stop - 1}"
        raise BadRecipe(
            f"mergekit merges one pair of models a slice with {piece.rules[0][1].kind}, {where} have {sorted(pairs)}"
        )
    ((first, second),) = pairs
    return first, second


def _slice(recipe: Recipe, piece: _Piece, base: int) -> dict[str, Any]:
    inputs, parameters = _inputs(recipe, piece)
    span = [piece.first, piece.stop]
    entry: dict[str, Any] = {
        "sources": [
            {**_entry(recipe, position, {}), "layer_range": span, **({"parameters": own} if own else {})}
            for position, own in inputs.items()
        ]
    }
    if isinstance(piece.rules[0][1], Slerp) and _slerp_base(recipe, piece) != base:
        entry["base_model"] = _reference(recipe.sources[_slerp_base(recipe, piece)])
    if parameters:
        entry["parameters"] = parameters
    return entry


def _slerp_base(recipe: Recipe, piece: _Piece) -> int:
    pair = _pair(piece)
    return recipe.tokenizer if recipe.tokenizer in pair else pair[0]


def _inputs(recipe: Recipe, piece: _Piece) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """Return the parameters of every model of ``piece``, by its position, and those that all share."""
    operator = piece.rules[0][1]
    if isinstance(operator, Slerp):
        base = _slerp_base(recipe, piece)
        t = _setting(piece, lambda rule: rule.t if rule.between[0] == base else 1.0 - rule.t)
        return {position: {} for position in _pair(piece)}, {"t": t}
    if isinstance(operator, NuSlerp):
        return _nuslerp_inputs(recipe, piece), {}
    fields = type(operator).model_fields
    shared = {theirs: _setting(piece, partial(_field, ours)) for ours, theirs in _SHARED.items() if ours in fields}
    if isinstance(operator, MultiSlerp):
        shared["normalize_weights"] = shared.pop("normalize")
    if isinstance(operator, Sce):
        del shared["lambda"]  # it is 1: `_check_expressible`
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


def _nuslerp_inputs(recipe: Recipe, piece: _Piece) -> dict[int, dict[str, Any]]:
    """mergekit's t is the share of the second of two weights: they are written as 1 - t and t."""
    assert recipe.base is not None
    first, second = _pair(piece)
    return {
        recipe.base: {},
        first: {"weight": _setting(piece, lambda rule: rule.t if rule.between[1] == first else 1.0 - rule.t)},
        second: {"weight": _setting(piece, lambda rule: rule.t if rule.between[1] == second else 1.0 - rule.t)},
    }


def _field(field: str, operator: Operator) -> Any:
    return getattr(operator, field)


def _share(field: str, number: int, operator: Operator) -> float:
    value = float(getattr(operator, field)[number])
    if isinstance(operator, Della | DellaLinear) and field == "spreads":
        density = operator.densities[number]
        value *= min(density, 1.0 - density)  # mergekit's epsilon is absolute
    return value


def _setting(piece: _Piece, value: Callable[[Any], Any]) -> Any:
    values = [(text, value(operator)) for text, operator in piece.rules]
    if len({found for _, found in values}) == 1:
        return values[0][1]
    return [{"value": found} if text is None else {"filter": text, "value": found} for text, found in values]


def _entry(recipe: Recipe, position: int, parameters: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"model": _reference(recipe.sources[position])}
    return {**entry, "parameters": dict(parameters)} if parameters else entry


def _reference(source: Source) -> Any:
    """Write a model as mergekit reads it; in its short form ``@`` and ``+`` have a meaning."""
    if "@" in source.path or "+" in source.path:
        inner = {"path": source.path, **({"revision": source.revision} if source.revision else {})}
        return {"model": inner}
    return f"{source.path}@{source.revision}" if source.revision else source.path
