"""Parameters of a live model that are several tensors of its files: the matrices of experts, stacked by transformers.

Where the tensors lie side by side in the parameter's order, the parameter is a view on them, and a merge that writes
the tensors writes the parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_OF_EXPERT = re.compile(r"\.experts\.\d+\.")
Fused = Mapping[str, tuple[str, ...]]  # parameter -> tensors of the files, in its order


def fused_parameters(folder: Path, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return what transformers stacks of the tensors ``names`` when it loads the model of the config in ``folder``.

    Stacks are told from transformers' own table of conversions: experts along the first dimension, and in each expert
    its matrices along the rows. Anything else is left to whoever compares names.
    """
    ours = [name for name in names if _OF_EXPERT.search(name)]
    if not ours:
        return {}
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    steps = get_model_conversion_mapping(model)
    renamed = {_renamed(name, steps): name for name in ours}
    found = {}
    for own, _ in model.named_parameters():
        for step in steps:
            if isinstance(step, WeightConverter) and _stacks(step) and own.endswith(step.target_patterns[0]):
                parts = _parts(own.removesuffix(step.target_patterns[0]), step.source_patterns, renamed)
                if parts:
                    found[own] = parts
    return found


def laid_out(names: Iterable[str], fused: Fused) -> list[str]:
    """Return ``names`` in an order in which the tensors of every fused parameter are neighbours."""
    group_of = {part: parts for parts in fused.values() for part in parts}
    ordered: dict[str, None] = {}
    for name in names:
        ordered.update(dict.fromkeys(group_of.get(name, (name,))))
    return list(ordered)


def as_one(parts: Iterable[str], tensors: Mapping[str, Tensor], shape: torch.Size) -> Tensor | None:
    """Return a view of ``shape`` on tensors that lie side by side; None if they do not."""
    pieces = [tensors[part] for part in parts]
    first, place = pieces[0], pieces[0].storage_offset()
    for piece in pieces:
        same = piece.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or piece.storage_offset() != place:
            return None
        place += piece.numel()
    return torch.as_strided(first, shape, torch.empty(shape, device="meta").stride(), first.storage_offset())


def _renamed(name: str, steps: Iterable[Any]) -> str:
    from transformers.core_model_loading import WeightRenaming

    for step in steps:
        if isinstance(step, WeightRenaming):
            name, _ = step.rename_source_key(name)
    return name


def _stacks(step: Any) -> bool:
    kinds = [(type(operation).__name__, operation.dim) for operation in step.operations if hasattr(operation, "dim")]
    whole = len(kinds) == len(step.operations) and len(step.target_patterns) == 1
    return whole and kinds in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])


def _parts(prefix: str, patterns: Iterable[str], renamed: Mapping[str, str]) -> tuple[str, ...]:
    found = {}
    for number, pattern in enumerate(patterns):
        shape = re.compile(re.escape(prefix) + re.escape(pattern).replace(r"\*", r"(\d+)"))
        for text, name in renamed.items():
            if match := shape.fullmatch(text):
                found[int(match[1]), number] = name
    return tuple(found[key] for key in sorted(found))
