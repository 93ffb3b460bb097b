"""What a path's checkpoint needs beside its tensors: a config of the right depth, and the proof that it is the path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import BadRecipe, BadSource
from evomerge.merging.checkpoint import LAYER_COUNTS, Checkpoint
from evomerge.merging.engine import DTYPES
from evomerge.merging.resident import ResidentModel, quiet
from search_spaces.recipe import Hop, Recipe

# Relative norm of what the logits of a written path differ by. A scale in the wrong place gives about 1; float32 leaves
# the epsilon of the norms, up to 1e-4, and the others the rounding of as many additions as there are hops.
TOLERANCE = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.15}
_PROMPTS, TOKENS = 2, 24


def path_config(config: dict[str, Any], *, hops: Sequence[Hop], types: Sequence[str] | None) -> dict[str, Any]:
    """Return ``config``, the content of a config.json, for a stack of ``hops``.

    Args:
        types: the kind of attention of every layer of the sources; None if there is one kind only.
    """
    changed = dict(config)
    for key in (*LAYER_COUNTS, "max_window_layers"):
        if isinstance(changed.get(key), int):
            changed[key] = len(hops)
    nested = config.get("text_config")
    if isinstance(nested, dict):
        changed["text_config"] = path_config(nested, hops=hops, types=types)
    elif types is not None:
        changed["layer_types"] = [types[hop.layer] for hop in hops]
    return changed


def layer_types(checkpoint: Checkpoint) -> Sequence[str] | None:
    """Return the kind of attention of every layer, as transformers reads the config; None if it knows one kind only.

    Raises:
        BadSource: transformers cannot read the config.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint.home, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise BadSource(f"{checkpoint.path}: transformers cannot read config.json ({error})") from None
    types: Sequence[str] | None = getattr(config.get_text_config(decoder=True), "layer_types", None)
    return types


def verify_path(recipe: Recipe, checkpoints: Sequence[Checkpoint], written: Path) -> None:
    """Check that stock transformers, given the folder ``written``, computes what the path ``recipe`` does.

    Raises:
        BadRecipe: on random prompts the logits are apart.
    """
    from transformers import AutoModelForCausalLM

    resident = ResidentModel(checkpoints, tokenizer=recipe.tokenizer, dtype=recipe.dtype)
    with quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(written, dtype=DTYPES[recipe.dtype], trust_remote_code=False)
    difference = apart(resident.apply(recipe), loaded.eval())
    if not difference <= TOLERANCE[recipe.dtype]:  # NaN is not
        raise BadRecipe(
            f"the path cannot be written as an ordinary checkpoint: with its scales folded into the weights its logits "
            f"differ by {difference:.2g} of their size (at most {TOLERANCE[recipe.dtype]:g} in {recipe.dtype}); scales "
            "nearer to 1, or dtype float32, change less"
        )


def apart(path: Any, other: Any) -> float:
    """Return how far the logits of two models are apart on random prompts: the norm of the difference over the norm of
    the first's. Logits are counted from their mean over the vocabulary, which no softmax sees.
    """
    text = path.config.get_text_config(decoder=True)
    length = min(TOKENS, int(getattr(text, "max_position_embeddings", TOKENS)))
    ids = torch.randint(text.vocab_size, (_PROMPTS, length), generator=torch.Generator().manual_seed(0))
    squares = torch.zeros(2, dtype=torch.float64)
    # Logits of one prompt at a time, float64 ones of one token: vocabularies are large.
    for prompt in torch.split(ids, 1):
        with torch.inference_mode():
            logits = [model(input_ids=prompt, use_cache=False).logits[0] for model in (path, other)]
        for rows in zip(*logits, strict=True):
            first, second = (row - row.mean() for row in map(torch.Tensor.double, rows))
            squares += torch.stack([(first - second).square().sum(), first.square().sum()])
    return math.sqrt(float(squares[0] / squares[1]))
