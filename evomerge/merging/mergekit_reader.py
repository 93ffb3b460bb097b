"""From a mergekit config to a recipe.

Gradients, filters and precedence are resolved as mergekit 0.1.5 does: a gradient runs from the first to the last
layer of its slice (a slice of one layer takes the last value); embeddings belong to the first slice, final norm and
head to the last one, and all of these take a gradient's *first* value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import BadRecipe
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.mergekit_layout import MergekitConfig, Slice, parse
from evomerge.merging.mergekit_operators import Asked, read_operator
from evomerge.merging.mergekit_paths import is_path, path_of
from evomerge.merging.mergekit_settings import filters_in
from evomerge.merging.opening import open_sources
from evomerge.merging.sources import resolve
from evomerge.merging.vocabulary import plan_vocabulary
from search_spaces.operators import Operator
from search_spaces.patterns import matches
from search_spaces.recipe import Block, Blocks, Dtype, PathBody, Recipe
from search_spaces.tensors import in_stack, layer_of
from search_spaces.vocabulary import Vocabulary

_Groups = list[tuple[tuple[str, ...], Operator]]


def from_mergekit(text_or_path: str | Path, *, mask_seed: int = 0) -> Recipe:
    """Return the recipe of a mergekit config, given as text or as the path of a file.

    The models are opened, for their layers and tensors. Sources are not pinned: see `sources.pin`.

    Raises:
        BadRecipe: the config holds something that cannot be expressed; the text names it.
        BadSource: a model cannot be opened.
    """
    config = parse(text_or_path)
    donor = config.tokenizer.model or config.base or config.models[0]
    base = config.models.index(config.base) if config.base is not None else None
    checkpoints = open_sources([resolve(model.path, model.revision) for model in config.models], base)
    body: Blocks | PathBody
    if config.method == "passthrough" and is_path(config, checkpoints[0].layers):
        body = path_of(config, checkpoints[0])
    else:
        body = Blocks(blocks=_blocks(config, checkpoints[0]), mask_seed=mask_seed)
    return Recipe(
        sources=config.models,
        base=base,
        tokenizer=config.models.index(donor),
        dtype=_dtype(config, checkpoints),
        vocabulary=_vocabulary(config, checkpoints, base),
        body=body,
    )


def _vocabulary(config: MergekitConfig, checkpoints: Sequence[Checkpoint], base: int | None) -> Vocabulary | None:
    """Return the config's vocabulary; none where nothing is asked for, or all have it already."""
    if not config.tokenizer.asked:
        return None
    policy = config.tokenizer.vocabulary(config.models, config.merged, config.base)
    equal = not plan_vocabulary(checkpoints, policy, base).changes
    return None if equal and policy.chat_template is None else policy


def _dtype(config: MergekitConfig, checkpoints: Sequence[Checkpoint]) -> Dtype:
    if config.dtype is not None:
        return config.dtype  # type: ignore[return-value]  # checked by parse
    found = {checkpoint.info(name).dtype for checkpoint in checkpoints for name in checkpoint.names}
    common = found.pop()
    for other in found:
        common = torch.promote_types(common, other)
    return str(common).removeprefix("torch.")  # type: ignore[return-value]  # sources hold no other dtypes


def _blocks(config: MergekitConfig, checkpoint: Checkpoint) -> tuple[Block, ...]:
    layers = checkpoint.layers
    end = config.slices[-1].stop
    if end is not None and end != layers:
        raise BadRecipe(f"mergekit config: the slices end at layer {end}, but the models have {layers} layers")
    filters = tuple(dict.fromkeys(text for scope in _scopes(config) for text in filters_in(scope)))
    by_layer: list[list[str]] = [[] for _ in range(layers)]
    for name in mergeable_names(checkpoint):
        by_layer[layer_of(name, layers)].append(name)
    blocks: list[tuple[int, int, _Groups]] = []
    for layer, names in enumerate(by_layer):
        piece = next(piece for piece in config.slices if piece.stop is None or layer < piece.stop)
        groups = _grouped(names, {name: _operator(config, piece, name, layer, layers) for name in names}, filters)
        if blocks and blocks[-1][2] == groups:
            blocks[-1] = (blocks[-1][0], layer + 1, groups)
        else:
            blocks.append((layer, layer + 1, groups))
    return tuple(
        Block(layers=(first, stop), tensors=tensors, operator=operator)
        for first, stop, groups in blocks
        for tensors, operator in groups
    )


def _scopes(config: MergekitConfig) -> Iterable[Mapping[str, Any]]:
    yield config.parameters
    for piece in config.slices:
        yield piece.parameters
        for entry in piece.inputs:
            yield entry.parameters


def _operator(config: MergekitConfig, piece: Slice, name: str, layer: int, layers: int) -> Operator:
    t = _place(piece, layer, layers) if in_stack(name) else 0.0
    return read_operator(Asked(config, piece, name, t))


def _place(piece: Slice, layer: int, layers: int) -> float:
    length = (layers if piece.stop is None else piece.stop) - piece.first
    return (layer - piece.first) / (length - 1) if length > 1 else 1.0


def _grouped(names: Sequence[str], operators: Mapping[str, Operator], filters: Sequence[str]) -> _Groups:
    """Return patterns and operators that say the same, for the tensors of one layer; the largest group comes last."""
    groups: dict[Operator, list[str]] = {}
    for name in names:
        groups.setdefault(operators[name], []).append(name)
    ordered = sorted(groups.items(), key=lambda item: len(item[1]))
    specific = [(_patterns(members, names, filters), operator) for operator, members in ordered[:-1]]
    return [*specific, *((("*",), operator) for operator, _ in ordered[-1:])]


def _patterns(members: Sequence[str], names: Sequence[str], filters: Sequence[str]) -> tuple[str, ...]:
    """Return patterns that match, of ``names``, exactly ``members``; short ones where they exist."""
    left = list(members)
    patterns: list[str] = []
    candidates = [f"*{_escape(text)}*" for text in filters] + [_any_layer(name) for name in members]
    for candidate in candidates:
        matched = {name for name in names if matches(name, (candidate,))}
        if matched <= set(members) and matched & set(left):
            patterns.append(candidate)
            left = [name for name in left if name not in matched]
    return (*patterns, *(_escape(name) for name in left))


def _any_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", _escape(name), count=1)


def _escape(text: str) -> str:
    return re.sub(r"[*?\[]", lambda match: f"[{match[0]}]", text)
