"""Paths through the layers of resident models: run by reference while searching, folded when they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import BadRecipe, BadSource
from evomerge.merging.assembly import Visit, assemble
from evomerge.merging.checkpoint import Checkpoint, text_config
from evomerge.merging.engine import DTYPES, Destination, MergeEngine
from evomerge.merging.folding import Folding, folded, folding_of
from evomerge.merging.pieces import Fill
from search_spaces.canonical import canonical_json
from search_spaces.recipe import PathBody, Recipe
from search_spaces.tensors import agree, by_layer, in_layer, in_stack

_OF_LAYERS = (
    "hidden_act", "hidden_activation", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon",
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rotary_pct", "sliding_window",
    "use_sliding_window", "layer_types", "use_parallel_residual", "attn_logit_softcapping", "query_pre_attn_scalar",
)  # fmt: skip
Build = Callable[[Mapping[str, Tensor]], Any]
Allocate = Callable[[], dict[str, Tensor]]


class SlotModels:
    """The live models that paths lead through.

    A source that has the dtype of the recipes is read where it is mapped; others, and merges, have a copy each.
    A merge is made again only when its body differs from the one before.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        engine: MergeEngine,
        build: Build,
        allocate: Allocate,
        *,
        mappable: bool,
    ) -> None:
        """Prepare; nothing is built before a path asks for it.

        Args:
            build: makes a live model on tensors.
            allocate: makes room for the tensors of one.
            mappable: whether models run where the sources are mapped, on the CPU.
        """
        self._checkpoints, self._engine = tuple(checkpoints), engine
        self._build, self._allocate, self._mappable = build, allocate, mappable
        self._sources: dict[int, Any] = {}
        self._merges: list[tuple[Destination, Any]] = []
        self._held: list[str] = []  # bodies of the merges

    def of(self, recipe: Recipe, body: PathBody) -> list[Any]:
        """Return a live model for every slot of ``body``, the body of ``recipe``.

        Raises:
            CandidateFailed: a slot cannot be merged.
            NotEnoughRoom: memory does not suffice.
        """
        models, merges = [], 0
        for position, slot in enumerate(body.slots):
            if isinstance(slot, int):
                models.append(self._source(recipe, position, slot))
            else:
                models.append(self._merge(recipe.slot(position), merges))
                merges += 1
        return models

    def _source(self, recipe: Recipe, position: int, source: int) -> Any:
        if source not in self._sources:
            check_configs(self._checkpoints[recipe.tokenizer], self._checkpoints[source])
            mapped = {name: self._checkpoints[source].tensor(name) for name in self._engine.order}
            if self._mappable and all(tensor.dtype is DTYPES[recipe.dtype] for tensor in mapped.values()):
                self._sources[source] = self._build(mapped)
            else:
                views = self._allocate()
                self._engine.merge(recipe.slot(position), views)
                self._sources[source] = self._build(views)
        return self._sources[source]

    def _merge(self, recipe: Recipe, number: int) -> Any:
        if number == len(self._merges):
            views = self._allocate()
            self._merges.append((Destination(views), self._build(views)))
            self._held.append("")
        destination, model = self._merges[number]
        key = canonical_json(recipe.body.model_dump(mode="json"))
        if self._held[number] != key:
            self._held[number] = ""  # undefined while, or if, the merge fails
            self._engine.merge(recipe, destination)
            self._held[number] = key
        return model


def path_model(body: PathBody, models: Sequence[Any]) -> Any:
    """Return the model that runs ``body`` over the live ``models`` of its slots, scaling the stream at each hop."""
    return assemble(models[0], [Visit(models[hop.slot], hop.layer, hop.scale) for hop in body.hops])


class FoldedPath:
    """The ordinary checkpoint of a path: names, shapes and tensors, with the scales folded in and cast once."""

    def __init__(self, recipe: Recipe, checkpoints: Sequence[Checkpoint], engine: MergeEngine) -> None:
        """Plan the tensors of ``recipe``.

        Raises:
            BadRecipe: a layer does not exist, or the scales cannot be folded in this architecture.
        """
        assert isinstance(recipe.body, PathBody)
        self._recipe, self._body, self._engine = recipe, recipe.body, engine
        donor = checkpoints[recipe.tokenizer]
        self._slots = [recipe.slot(position) for position in range(len(self._body.slots))]
        self._folding: Folding | None = folding_of(donor) if self._body.scaled else None
        self._origin: dict[str, tuple[int, str, float]] = {}  # slot, tensor there, stream scale
        scales = self._body.stream_scales
        inside = [name for name in engine.order if in_stack(name)]
        for name in engine.order:
            if name not in inside:
                self._origin[name] = (0, name, scales[-1])
            elif name == inside[0]:
                self._plan_layers(inside, donor.layers, scales)
        self.shapes = {name: donor.info(origin).shape for name, (_, origin, _) in self._origin.items()}

    def _plan_layers(self, inside: Sequence[str], layers: int, scales: Sequence[float]) -> None:
        names = by_layer(inside, layers)
        for number, (hop, scale) in enumerate(zip(self._body.hops, scales, strict=True)):
            if hop.layer not in names:
                raise BadRecipe(f"hop {number} visits layer {hop.layer}, but the models have layers 0 to {layers - 1}")
            for name in names[hop.layer]:
                self._origin[in_layer(name, number)] = (hop.slot, name, scale)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors in the order in which they are written."""
        return tuple(self._origin)

    def changes(self, name: str) -> bool:
        """Whether folding changes tensor ``name``."""
        return self._gain(name) != (1.0, 0.0)

    def tensor(self, name: str) -> Tensor:
        """Return tensor ``name`` on the CPU in the recipe's dtype.

        Raises:
            CandidateFailed: its slot cannot be merged.
        """
        out = torch.empty(self.shapes[name], dtype=DTYPES[self._recipe.dtype])
        self.merge(name)(out.view(-1), 0)
        return out

    def merge(self, name: str) -> Fill:
        """Return what makes tensor ``name`` on the CPU, whole or in pieces.

        Raises:
            CandidateFailed: its slot cannot be merged.
        """
        slot, origin, _ = self._origin[name]
        gain = self._gain(name)
        merge = self._engine.tensor_merge(self._slots[slot], origin)
        if gain == (1.0, 0.0):
            return merge.fill

        def fill(out: Tensor, first: int) -> None:
            exact = torch.empty(out.numel())  # so that it is rounded once, after the scale
            merge.fill(exact, first)
            out.copy_(folded(exact, gain))

        return fill

    def _gain(self, name: str) -> tuple[float, float]:
        return (1.0, 0.0) if self._folding is None else self._folding.gain(name, self._origin[name][2])


def folded_model(body: PathBody, models: Sequence[Any], fold: FoldedPath) -> Any:
    """Return the model that ``fold`` writes, on the live ``models`` of the slots: what folding changes is copied."""
    plain = [Visit(models[hop.slot], hop.layer, 1.0) for hop in body.hops]
    model = assemble(models[0], plain)
    own = dict(model.named_parameters(remove_duplicate=False))
    for name in fold.names:
        if fold.changes(name):
            place = name if name in own else next(key for key in own if agree(key, name))
            module, _, kind = place.rpartition(".")
            value = fold.tensor(name).to(own[place].device)
            setattr(model.get_submodule(module), kind, nn.Parameter(value, requires_grad=False))
    return model


def check_configs(frame: Checkpoint, other: Checkpoint) -> None:
    """Check that layers of ``other`` can run in a model with the config of ``frame``.

    Raises:
        BadSource: a setting that changes what a layer computes differs.
    """
    mine, its = text_config(frame.config), text_config(other.config)
    for key in _OF_LAYERS:
        if mine.get(key) != its.get(key):
            raise BadSource(
                f"{other.path}: {key} is {its.get(key)!r}, in {frame.path} it is {mine.get(key)!r}; all layers of a "
                "path run with one config"
            )
