"""Weight matching: a model's hidden units and heads in the order of another model's, for merges without a common base.

Two models trained apart may know the same things in different places. What can be permuted without changing what a
model computes are the units of every MLP and the attention heads: key-value heads among themselves, query heads within
the group of one key-value head. The residual stream stays (norms and embeddings tie it), so every layer is a linear
assignment problem of its own, solved exactly: the permutation with the largest inner product of the weights that it
moves (Git Re-Basin's weight matching, Ainsworth et al. 2023, which must iterate where the stream is permuted, too).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor

from evomerge.atomic import writing_folder
from evomerge.errors import BadSource
from evomerge.merging.checkpoint import Checkpoint, text_config
from evomerge.merging.companions import copy_companions
from evomerge.merging.compatibility import check, mergeable_names
from evomerge.merging.pieces import Fill
from evomerge.merging.preparations import ALIGNMENT
from evomerge.merging.safetensors_writer import write_weights
from evomerge.merging.sources import fingerprint
from search_spaces.tensors import by_layer

_FORMAT = "evomerge-alignment-1"
_ROWS, _COLUMNS = 0, 1
_MLP = {"mlp.gate_proj": _ROWS, "mlp.up_proj": _ROWS, "mlp.down_proj": _COLUMNS}
_QUERIES = {"self_attn.q_proj": _ROWS, "self_attn.o_proj": _COLUMNS}
_KEYS = {"self_attn.k_proj": _ROWS, "self_attn.v_proj": _ROWS}
_STAY = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")  # one for all heads
Progress = Callable[[int, int], None]  # layers done, all


@dataclass(frozen=True)
class LayerOrder:
    """Where the units and heads of one layer go: at place i stands what was at ``order[i]``."""

    units: tuple[int, ...]
    heads: tuple[int, ...]
    key_value_heads: tuple[int, ...]


@dataclass(frozen=True)
class Matching:
    """The orders of all layers, and the models they follow from.

    Attributes:
        model: digest of the content of the model that is brought into order.
        reference: digest of the model whose order it is.
    """

    model: str
    reference: str
    layers: tuple[LayerOrder, ...]

    def to_json(self) -> str:
        """Return the record."""
        value = {"format": _FORMAT, "model": self.model, "reference": self.reference}
        layers = [
            {"units": layer.units, "heads": layer.heads, "key_value_heads": layer.key_value_heads}
            for layer in self.layers
        ]
        return json.dumps({**value, "layers": layers}, separators=(",", ":"))

    @property
    def moved(self) -> int:
        """How many units and heads change their place."""
        return sum(place != i for order in self._orders for i, place in enumerate(order))

    @property
    def places(self) -> int:
        """How many units and heads there are."""
        return sum(map(len, self._orders))

    @property
    def _orders(self) -> list[tuple[int, ...]]:
        return [order for layer in self.layers for order in (layer.units, layer.heads, layer.key_value_heads)]


def match(model: Checkpoint, reference: Checkpoint, *, progress: Progress | None = None) -> Matching:
    """Return the order of units and heads in which ``model`` is nearest to ``reference``.

    Raises:
        BadSource: the models differ in shape, or their layers are not built like Llama's (separate q, k, v and gate,
            up, down projections): then it is not known what may be permuted.
    """
    names = mergeable_names(reference)
    check([reference, model], names)
    tensors, layers = by_layer(names, reference.layers), []
    for number in range(reference.layers):
        pair = _Pair(model, reference, tensors.get(number, []))
        layers.append(pair.order())
        if progress is not None:
            progress(number + 1, reference.layers)
    return Matching(fingerprint(model.path), fingerprint(reference.path), tuple(layers))


def write_aligned(model: Checkpoint, matching: Matching, to: Path) -> None:
    """Write ``model`` in the order of ``matching`` as folder ``to``: the same function, with the record beside it.

    Every tensor keeps its dtype.

    Raises:
        UserMistake: ``to`` exists and is not an empty folder.
        NotEnoughRoom: the disk is full; nothing is left behind.
    """
    names = mergeable_names(model)
    parts = {
        name: (layer, name)
        for number, own in by_layer(names, model.layers).items()
        for layer in [matching.layers[number]]
        for name in own
    }

    def merge(name: str) -> Fill:
        tensor = model.tensor(name)
        if name in parts:
            tensor = permuted(tensor, name, parts[name][0], _heads_of(model))
        flat = tensor.contiguous().view(-1)

        def fill(piece: Tensor, start: int) -> None:
            piece.copy_(flat[start : start + piece.numel()])

        return fill

    with writing_folder(to) as folder:
        tensors = {name: model.info(name) for name in names}
        write_weights(tensors, folder, merge=merge)
        copy_companions(model.path, folder)
        (folder / "config.json").write_text(json.dumps(model.config, indent=2) + "\n", encoding="utf-8")
        (folder / ALIGNMENT).write_text(matching.to_json() + "\n", encoding="utf-8")


def permuted(tensor: Tensor, name: str, order: LayerOrder, heads: tuple[int, int]) -> Tensor:
    """Return tensor ``name`` of one layer with its units or heads in ``order``; ``heads`` are how many there are."""
    for parts, places, count in (
        (_MLP, order.units, len(order.units)),
        (_QUERIES, order.heads, heads[0]),
        (_KEYS, order.key_value_heads, heads[1]),
    ):
        for part, side in parts.items():
            if f".{part}." in name and not (side == _COLUMNS and tensor.dim() == 1):  # a bias of the stream stays
                return moved(tensor, places, count, side)
    return tensor


def moved(tensor: Tensor, places: Sequence[int], count: int, side: int) -> Tensor:
    """Return ``tensor`` with the ``count`` equal parts of its dimension ``side`` in the order of ``places``."""
    shape = tensor.shape
    split = tensor.reshape(*shape[:side], count, -1, *shape[side + 1 :])
    moved: Tensor = split.index_select(side, torch.tensor(places))
    return moved.reshape(shape)


def _heads_of(checkpoint: Checkpoint) -> tuple[int, int]:
    config = text_config(checkpoint.config)
    heads = int(config["num_attention_heads"])
    return heads, int(config.get("num_key_value_heads") or heads)


@dataclass(frozen=True)
class _Pair:
    """One layer of both models."""

    model: Checkpoint
    reference: Checkpoint
    names: Sequence[str]

    def order(self) -> LayerOrder:
        self._check()
        heads, groups = self.heads
        units = best_assignment(self._similarity(_MLP, self._units))
        query, key = self._similarity(_QUERIES, heads), self._similarity(_KEYS, groups)
        size = heads // groups
        gain, inner = key.copy(), np.empty((groups, groups), dtype=object)
        for a in range(groups):
            for b in range(groups):
                block = query[a * size : (a + 1) * size, b * size : (b + 1) * size]
                inner[a, b] = best_assignment(block)
                gain[a, b] += block[np.arange(size), inner[a, b]].sum()
        of_groups = best_assignment(gain)
        of_heads = [int(b) * size + int(i) for a, b in enumerate(of_groups) for i in inner[a, b]]
        return LayerOrder(tuple(units.tolist()), tuple(of_heads), tuple(of_groups.tolist()))

    @property
    def heads(self) -> tuple[int, int]:
        return _heads_of(self.reference)

    @cached_property
    def _parts(self) -> Mapping[str, str]:
        known = (*_MLP, *_QUERIES, *_KEYS)
        return {part: name for name in self.names for part in known if name.endswith(f".{part}.weight")}

    @property
    def _units(self) -> int:
        return self.reference.info(self._parts["mlp.up_proj"]).shape[0]

    def _check(self) -> None:
        known = (*_MLP, *_QUERIES, *_KEYS)
        missing = [part for part in known if part not in self._parts]
        inside = [name for name in self.names if ".self_attn." in name or ".mlp." in name]
        strange = [n for n in inside if not any(f".{part}." in n for part in known) and not self._stays(n)]
        if missing or strange:
            what = f"it has no {missing[0]}" if missing else f"tensor {strange[0]!r} is not known"
            raise BadSource(
                f"{self.reference.path}: its layers are not built like Llama's ({what}), so it is not known which "
                "units and heads may be permuted"
            )

    def _stays(self, name: str) -> bool:
        """Whether it is a norm that all heads share; where it spans them all (OLMo 2), its parts belong to heads."""
        part = self._parts.get("self_attn.k_proj")
        if part is None or not name.endswith(_STAY):
            return False
        return self.reference.info(name).shape == (self.reference.info(part).shape[0] // self.heads[1],)

    def _similarity(self, parts: Mapping[str, int], count: int) -> np.ndarray:
        """Return the inner products of what moves with unit or head i of the reference and j of the model, float64."""
        total = torch.zeros((count, count), dtype=torch.float64)
        for name in self.names:
            for part, side in parts.items():
                if f".{part}." in name and (side == _ROWS or self.reference.info(name).shape[1:]):
                    rows = [rows_of(each.tensor(name), side, count) for each in (self.reference, self.model)]
                    total += rows[0] @ rows[1].T
        return total.numpy()


def rows_of(tensor: Tensor, side: int, count: int) -> Tensor:
    """Return what belongs to each of the ``count`` parts of dimension ``side`` as a row, float64 (count, elements)."""
    turned = tensor.double().transpose(0, side) if side else tensor.double()
    return turned.reshape(count, -1)


def best_assignment(similarity: np.ndarray) -> np.ndarray:
    """Return for each row the column of the assignment with the largest sum."""
    columns: np.ndarray = linear_sum_assignment(similarity, maximize=True)[1]
    return columns
