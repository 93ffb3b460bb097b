"""Writing a merge as a LoRA adapter of its base: exactly, by stacking ranks, or as near as a given rank comes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge.atomic import check_free, writing_folder
from evomerge.errors import BadRecipe
from evomerge.merging.adapter import CONFIG, PREFIX, WEIGHTS, Adapter
from evomerge.merging.engine import DTYPES, MergeEngine
from evomerge.merging.export import open_merge, write_recipe
from evomerge.merging.kernels import Combination
from evomerge.merging.lowrank import LowRank
from evomerge.shares import Progress
from search_spaces.recipe import Blocks, Recipe

_ROUNDING = 1e-7  # singular values below this share of the largest are rounding errors of float32
Pair = tuple[Tensor, Tensor]  # B (rows, rank) and A (rank, columns), float64


def write_adapter(
    recipe: Recipe, to: Path, *, rank: int | None = None, progress: Progress | None = None, card: str | None = None
) -> float:
    """Write ``recipe`` over adapters as one adapter of their base, in folder ``to``.

    Where the operator is linear in the task vectors, ``sum_i c_i s_i B_i A_i`` is ``[c_1 s_1 B_1, ...] [A_1; ...]``:
    the ranks add up and nothing is lost. With ``rank`` the singular values of that product beyond it are cut off.

    Returns:
        The norm of what was cut off over the norm of the whole delta: 0 without ``rank``.

    Raises:
        UserMistake: ``to`` exists and is not an empty folder.
        BadRecipe: an expert is no adapter, the recipe has a vocabulary of its own, or the operator is not linear in the
            task vectors.
        BadSource: the sources have changed or do not fit, or an adapter changes more than plain matrices.
    """
    check_free(to)
    if recipe.vocabulary is not None:
        raise BadRecipe("a merged model with another vocabulary is no adapter of its base; export a checkpoint")
    sources, engine = open_merge(recipe)
    pairs: dict[str, Pair] = {}
    lost = whole = 0.0
    for done, name in enumerate(engine.order, start=1):
        pair = _pair(recipe, engine, sources, name)
        if pair is not None:
            pairs[name], cut, total = _compact(*pair, rank)
            lost, whole = lost + cut, whole + total
        if progress is not None:
            progress(done, len(engine.order))
    if not pairs:
        raise BadRecipe("this merge is the base itself: there is nothing that an adapter could hold")
    with writing_folder(to) as folder:
        _write(folder, pairs, recipe)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
    return math.sqrt(lost / whole) if whole else 0.0


def _pair(recipe: Recipe, engine: MergeEngine, sources: Sequence[object], name: str) -> Pair | None:
    """Return the stacked factors of one tensor; none where nothing is added to the base."""
    kernel = engine.kernel(recipe, name) if isinstance(recipe.body, Blocks) else None
    if isinstance(kernel, LowRank):
        return kernel.up.double() * kernel.scale, kernel.down.double()
    linear = isinstance(kernel, Combination) and kernel.pivot == recipe.base and kernel.scale == 1.0
    if not linear or not isinstance(kernel, Combination) or any(term.keep is not None for term in kernel.terms):
        raise BadRecipe(
            f"tensor {name!r}: only sums of task vectors (task_arithmetic, model_stock, nuslerp, ...) of adapters and "
            "operators on their factors (lora_lego, evo_lora) make an adapter; export a checkpoint"
        )
    ups, downs = [], []
    for term in kernel.terms:
        source = sources[term.source]
        if not isinstance(source, Adapter):
            raise BadRecipe(
                f"{recipe.sources[term.source].path} is no adapter, so the merge is none; export a checkpoint"
            )
        factors = source.factors(name)
        if factors is not None:
            ups.append(factors.up.double() * (factors.scale * term.coefficient))
            downs.append(factors.down.double())
    return (torch.cat(ups, dim=1), torch.cat(downs)) if ups else None


def _compact(up: Tensor, down: Tensor, rank: int | None) -> tuple[Pair, float, float]:
    """Return factors of at most ``rank``, the square of what they leave out, and of the whole.

    The singular values of ``B A`` are those of ``R_B R_A^T``, which is as small as the stacked rank.
    """
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(upper @ lower.T)
    whole = float(values.square().sum())
    if rank is None or rank >= len(values):
        return (up, down), 0.0, whole
    kept = max(1, min(rank, int((values > _ROUNDING * values[0]).sum())))
    roots = values[:kept].sqrt()
    pair = (left @ u[:, :kept] * roots, roots[:, None] * (v[:kept] @ right.T))
    return pair, float(values[kept:].square().sum()), whole


def _write(folder: Path, pairs: dict[str, Pair], recipe: Recipe) -> None:
    dtype = DTYPES[recipe.dtype]
    tensors, ranks = {}, {}
    for name, (up, down) in pairs.items():
        module = name.removesuffix(".weight")
        tensors[f"{PREFIX}{module}.lora_A.weight"] = down.to(dtype).contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = up.to(dtype).contiguous()
        ranks[module] = down.shape[0]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert recipe.base is not None
    most = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != most}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": recipe.sources[recipe.base].path,
        "revision": recipe.sources[recipe.base].revision,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,  # alpha / r is 1 everywhere: the scales are in the matrices
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted(ranks),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_recipe(recipe, folder)
