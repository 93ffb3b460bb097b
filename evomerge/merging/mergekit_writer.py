"""From a recipe to a mergekit config that merges the same model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from evomerge.errors import BadRecipe
from evomerge.merging.adapter import is_adapter
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.mergekit_inputs import Piece, Rule, check_expressible, inputs_of, pair_of, slerp_base
from evomerge.merging.mergekit_paths import slices_of
from evomerge.merging.mergekit_tokenizer import written
from evomerge.merging.sources import resolve
from search_spaces.operators import Karcher, Linear, Mwa, OperatorPlugIn, Passthrough, Slerp
from search_spaces.patterns import matches
from search_spaces.recipe import Block, Blocks, PathBody, Recipe, Source
from search_spaces.tensors import layer_of
from search_spaces.tiles import MosaicBody

_DRAWS = "# mergekit draws other random masks: an equally distributed model, not the same bytes.\n"


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
    adapted = tuple(_adapted(recipe, each) for each in recipe.sources)
    recipe = recipe.model_copy(update={"sources": adapted})
    return _path(recipe, recipe.body) if isinstance(recipe.body, PathBody) else _blocks(recipe, _known(recipe))


class _Adapter(Source):
    """An adapter, which mergekit names after the model that it is of."""

    of: Source


def _adapted(recipe: Recipe, source: Source) -> Source:
    if not is_adapter(resolve(source.path, source.revision)):
        return source
    assert recipe.base is not None  # adapters need one: `opening.open_sources`
    return _Adapter(path=source.path, revision=source.revision, of=recipe.sources[recipe.base])


def _known(recipe: Recipe) -> Blocks:
    """Return the blocks with what mergekit has no name for, but can express, in its own terms."""
    assert isinstance(recipe.body, Blocks)
    blocks = []
    for block in recipe.body.blocks:
        operator = block.operator
        if isinstance(operator, Mwa):
            shares = dict(zip(recipe.experts, operator.shares, strict=True))
            operator = Linear(weights=tuple(shares.get(i, 0.0) for i in range(len(recipe.sources))))
        blocks.append(block.model_copy(update={"operator": operator}))
    return recipe.body.model_copy(update={"blocks": tuple(blocks)})


def _blocks(recipe: Recipe, body: Blocks) -> str:
    if any(block.has_step for block in body.blocks):
        raise BadRecipe("mergekit has no length and no lines: export the checkpoint or the recipe")
    if plugged := [block.operator.kind for block in body.blocks if isinstance(block.operator, OperatorPlugIn)]:
        raise BadRecipe(f"mergekit has no operator {plugged[0]!r}: export the checkpoint or the recipe")
    source = recipe.sources[recipe.tokenizer]
    checkpoint = Checkpoint.open(resolve(source.path, source.revision))
    names, layers = mergeable_names(checkpoint), checkpoint.layers
    pieces = _pieces(body, names, layers)
    kinds = sorted({operator.kind for piece in pieces for _, operator in piece.rules})
    if len(kinds) > 1:
        raise BadRecipe(f"mergekit knows one merge_method a config, and the recipe has {', '.join(kinds)}")
    for piece in pieces:
        check_expressible(piece)
    base = _base(recipe, pieces)
    value: dict[str, Any] = {"merge_method": kinds[0]}
    if kinds[0] not in ("karcher", "passthrough"):  # these would merge it, too
        value["base_model"] = _reference(recipe.sources[base])
    if len(pieces) == 1:
        inputs, parameters = inputs_of(recipe, pieces[0])
        value["models"] = [_entry(recipe, position, settings) for position, settings in inputs.items()]
        if parameters:
            value["parameters"] = parameters
    else:
        value["slices"] = [_slice(recipe, piece, base) for piece in pieces]
        if len({len(entry["sources"]) for entry in value["slices"]}) > 1:  # its head and norm leave out the others
            raise BadRecipe(f"mergekit needs {kinds[0]} of as many models in every slice")
    value |= {"dtype": "float32", "out_dtype": recipe.dtype}
    given = value.get("base_model") is not None and recipe.tokenizer == base
    value |= written(recipe, _reference) or ({} if given else {"tokenizer_source": _reference(source)})
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    return (_DRAWS if kinds[0].startswith(("dare", "della")) else "") + text


def _path(recipe: Recipe, body: PathBody) -> str:
    source = recipe.sources[recipe.tokenizer]
    slices = [
        {"sources": [entry | {"model": _reference(recipe.sources[entry["model"]])}]}
        for entry in slices_of(body, Checkpoint.open(resolve(source.path, source.revision)))
    ]
    value = {"merge_method": "passthrough", "slices": slices, "dtype": "float32", "out_dtype": recipe.dtype}
    value |= written(recipe, _reference) or {"tokenizer_source": _reference(source)}
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def _pieces(body: Blocks, names: Sequence[str], layers: int) -> list[Piece]:
    cuts = {0, layers} | {min(end, layers) for block in body.blocks for end in block.layers}
    ordered = sorted(cuts)
    pieces: list[Piece] = []
    for first, stop in zip(ordered, ordered[1:], strict=False):
        inside = [name for name in names if first <= layer_of(name, layers) < stop]
        covering = [block for block in body.blocks if block.layers[0] <= first and stop <= block.layers[1]]
        rules = _rules(covering, inside)
        if pieces and pieces[-1].rules == rules:
            pieces[-1] = Piece(pieces[-1].first, stop, rules)
        else:
            pieces.append(Piece(first, stop, rules))
    return pieces


def _rules(blocks: Sequence[Block], names: Sequence[str]) -> tuple[Rule, ...]:
    rules: list[Rule] = []
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


def _base(recipe: Recipe, pieces: Sequence[Piece]) -> int:
    """Return the position of base_model, from which mergekit also takes config and tokenizer."""
    operator = pieces[0].rules[0][1]
    if isinstance(operator, Linear | Karcher | Passthrough):
        return recipe.tokenizer
    if isinstance(operator, Slerp):
        pairs = [pair_of(piece) for piece in pieces]
        return recipe.tokenizer if all(recipe.tokenizer in pair for pair in pairs) else pairs[0][0]
    assert recipe.base is not None  # the recipe checks it
    return recipe.base


def _slice(recipe: Recipe, piece: Piece, base: int) -> dict[str, Any]:
    inputs, parameters = inputs_of(recipe, piece)
    span = [piece.first, piece.stop]
    entry: dict[str, Any] = {
        "sources": [
            {**_entry(recipe, position, {}), "layer_range": span, **({"parameters": own} if own else {})}
            for position, own in inputs.items()
        ]
    }
    if isinstance(piece.rules[0][1], Slerp) and slerp_base(recipe, piece) != base:
        entry["base_model"] = _reference(recipe.sources[slerp_base(recipe, piece)])
    if parameters:
        entry["parameters"] = parameters
    return entry


def _entry(recipe: Recipe, position: int, parameters: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"model": _reference(recipe.sources[position])}
    return {**entry, "parameters": dict(parameters)} if parameters else entry


def _reference(source: Source) -> Any:
    """Write a model as mergekit reads it; in its short form ``@`` and ``+`` have a meaning."""
    if isinstance(source, _Adapter):
        pair = {"model": source.of, "lora": source}
        return {
            key: {"path": each.path, **({"revision": each.revision} if each.revision else {})}
            for key, each in pair.items()
        }
    if "@" in source.path or "+" in source.path:
        inner = {"path": source.path, **({"revision": source.revision} if source.revision else {})}
        return {"model": inner}
    return f"{source.path}@{source.revision}" if source.revision else source.path
