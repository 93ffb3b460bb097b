"""Writing a mixture-of-experts model whose experts are merged in groups, as an ordinary checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.atomic import writing_folder
from evomerge.errors import BadSource
from evomerge.merging.calibrations import keep
from evomerge.merging.checkpoint import Checkpoint, TensorInfo
from evomerge.merging.companions import copy_companions
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.compression import COUNTS, Compression, Layer
from evomerge.merging.matching import moved
from evomerge.merging.mixtures import EXPERTS, Matrix
from evomerge.merging.pieces import Fill
from evomerge.merging.preparations import COMPRESSION
from evomerge.merging.routing import Group
from evomerge.merging.safetensors_writer import info_of, write_weights


def write_compressed(model: Checkpoint, compression: Compression, to: Path) -> None:
    """Write ``model`` with its experts merged as folder ``to``, with the record and the prompts beside it.

    Every tensor keeps its dtype; averages are made in float64, a tensor at a time.

    Raises:
        UserMistake: ``to`` exists and is not an empty folder.
        BadSource: transformers builds no such model from the smaller number of experts.
        NotEnoughRoom: the disk is full; nothing is left behind.
    """
    made: dict[str, _Made] = {}
    for layer in compression.layers:
        made |= _layer(model, layer)
    replaced = {name for each in compression.layers for matrix in each.mixture.matrices for name in matrix.names}
    tensors = {
        name: made[name].info if name in made else model.info(name)
        for name in mergeable_names(model)
        if name in made or name not in replaced
    }
    with writing_folder(to) as folder:
        config = _with_experts(model.config, compression.experts)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _check_built(model.path, folder, compression)
        write_weights(tensors, folder, merge=partial(_fill, model, made))
        copy_companions(model.path, folder)
        keep(compression.calibration, folder)
        (folder / COMPRESSION).write_text(compression.to_json() + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Made:
    """A tensor that is written otherwise than it was read."""

    info: TensorInfo
    make: Callable[[], Tensor]


def _fill(model: Checkpoint, made: Mapping[str, _Made], name: str) -> Fill:
    tensor = made[name].make().to(made[name].info.dtype) if name in made else model.tensor(name)
    flat = tensor.contiguous().view(-1)

    def fill(piece: Tensor, start: int) -> None:
        piece.copy_(flat[start : start + piece.numel()])

    return fill


def _layer(model: Checkpoint, layer: Layer) -> dict[str, _Made]:
    """Return what is written of one layer: its experts' tensors are those of the groups, in order."""
    found = {}

    def merged(matrix: Matrix, group: Group) -> Tensor:
        total = torch.zeros(matrix.shape, dtype=torch.float64)
        for expert in group.members:
            tensor = matrix.of(model, expert)
            if expert in layer.orders and matrix.side is not None:
                tensor = moved(tensor, layer.orders[expert], layer.mixture.units, matrix.side)
            total.add_(tensor, alpha=float(layer.weights[expert]))
        return total

    def all_merged(matrix: Matrix) -> Tensor:
        dtype = model.info(matrix.names[0]).dtype
        return torch.stack([merged(matrix, group).to(dtype) for group in layer.groups])

    for matrix in layer.mixture.matrices:
        info = model.info(matrix.names[0])
        if matrix.stacked:
            shape = (len(layer.groups), *info.shape[1:])
            found[matrix.names[0]] = _Made(info_of(shape, info.dtype), partial(all_merged, matrix))
            continue
        for group, name in zip(layer.groups, matrix.names, strict=False):  # the other names are no longer needed
            found[name] = _Made(model.info(name), partial(merged, matrix, group))
    for name, rows in zip(layer.mixture.routers, layer.routers, strict=True):
        found[name] = _Made(info_of(tuple(rows.shape), model.info(name).dtype), rows.clone)
    return found


def _with_experts(config: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the content of a config.json for ``count`` experts a layer."""
    changed = {key: count if key in COUNTS and value else value for key, value in config.items()}
    nested = config.get("text_config")
    if isinstance(nested, dict):
        changed["text_config"] = _with_experts(nested, count)
    return changed


def _check_built(path: Path, folder: Path, compression: Compression) -> None:
    """Check that the config in ``folder`` gives a model of the shapes that will be written."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        built: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    for layer in compression.layers:
        for child in (EXPERTS, layer.mixture.router):
            module = built.get_submodule(f"{layer.mixture.module}.{child}")
            if any(parameter.shape[0] != compression.experts for parameter in module.parameters()):
                raise BadSource(
                    f"{path}: transformers' {config.model_type} does not take the number of experts from config.json, "
                    "so fewer cannot be written"
                )
