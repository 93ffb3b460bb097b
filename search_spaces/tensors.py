"""Which layer a tensor belongs to, from its name alone, and which of a recipe's blocks decides it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from search_spaces.patterns import matches
from search_spaces.recipe import Block, Blocks

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "wpe", "word_embeddings", "embed_positions", "embeddings")
_BEFORE_THE_STACK = re.compile(rf"(?:^|\.)(?:{'|'.join(_EMBEDDINGS)})\.")


def layer_of(tensor: str, layers: int) -> int:
    """Return the layer that ``tensor`` counts for in a stack of ``layers``.

    Token and position embeddings count for layer 0; the final norm and the head for the last layer.
    """
    if match := _LAYER.search(tensor):
        return int(match[1])
    return 0 if _BEFORE_THE_STACK.search(tensor) else layers - 1


def in_stack(tensor: str) -> bool:
    """Whether ``tensor`` belongs to one of the layers, not to what comes before or after them."""
    return bool(_LAYER.search(tensor))


def is_embedding(tensor: str) -> bool:
    """Whether ``tensor`` holds a row for every token or position."""
    return bool(_BEFORE_THE_STACK.search(tensor))


def by_layer(tensors: Iterable[str], layers: int) -> dict[int, list[str]]:
    """Return those of ``tensors`` that belong to one of ``layers`` layers, by layer, in their order."""
    found: dict[int, list[str]] = {}
    for name in tensors:
        if in_stack(name):
            found.setdefault(layer_of(name, layers), []).append(name)
    return found


def agree(one: str, other: str) -> bool:
    """Whether two names of tensors differ at most by outer modules, which some files leave out."""
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")


def in_layer(tensor: str, layer: int) -> str:
    """Return the name of ``tensor``, which belongs to one of the layers, in another ``layer``."""
    match = _LAYER.search(tensor)
    if match is None:
        raise ValueError(f"tensor {tensor!r} belongs to no layer")
    return f"{tensor[: match.start(1)]}{layer}{tensor[match.end(1) :]}"


def block_for(tensor: str, body: Blocks, layers: int) -> Block:
    """Return the first block of ``body`` that covers ``tensor`` in a stack of ``layers``.

    Raises:
        ValueError: no block covers it.
    """
    layer = layer_of(tensor, layers)
    for block in body.blocks:
        first, stop = block.layers
        if first <= layer < stop and matches(tensor, block.tensors):
            return block
    raise ValueError(f"no block of the recipe covers tensor {tensor!r} (layer {layer} of {layers})")
