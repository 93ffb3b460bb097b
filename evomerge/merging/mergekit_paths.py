"""Paths as mergekit's passthrough slices with scale filters, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge.errors import BadRecipe
from evomerge.merging.checkpoint import Checkpoint, text_config
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.folding import Folding, folding_of
from evomerge.merging.mergekit_layout import MergekitConfig, Slice
from evomerge.merging.mergekit_operators import Asked
from evomerge.merging.path_export import layer_types
from search_spaces.recipe import Hop, PathBody
from search_spaces.tensors import by_layer

_ALONE = "export it as a checkpoint, or as a recipe for `evomerge merge`"


def slices_of(body: PathBody, donor: Checkpoint) -> list[dict[str, Any]]:
    """Return mergekit's slices of the path ``body``, without the names of the models: ``model`` is a position.

    Args:
        donor: the checkpoint that gives the config.

    Raises:
        BadRecipe: mergekit cannot express the path.
    """
    _check_expressible(body, donor)
    folding = folding_of(donor) if body.scaled else None
    if folding is not None and folding.norms_write and folding.offset:
        raise BadRecipe(f"mergekit multiplies weights, and here a scale also shifts those of norms: {_ALONE}")
    found: list[dict[str, Any]] = []
    for hop, stream_scale in zip(body.hops, body.stream_scales, strict=True):
        entry: dict[str, Any] = {"model": body.slots[hop.slot], "layer_range": [hop.layer, hop.layer + 1]}
        if folding is not None and stream_scale != 1.0:
            entry["parameters"] = {"scale": _scale(folding, stream_scale)}
        if found and _continues(found[-1], entry):
            found[-1]["layer_range"][1] += 1
        else:
            found.append(entry)
    return found


def _continues(before: dict[str, Any], entry: dict[str, Any]) -> bool:
    same = all(before.get(key) == entry.get(key) for key in ("model", "parameters"))
    return same and before["layer_range"][1] == entry["layer_range"][0]


def _scale(folding: Folding, stream_scale: float) -> list[dict[str, Any]]:
    filters: list[dict[str, Any]] = [{"filter": name, "value": 1.0 / stream_scale} for name in folding.writers]
    return [*filters, {"value": 1.0}]


def _check_expressible(body: PathBody, donor: Checkpoint) -> None:
    if body.merged_slots:
        raise BadRecipe(f"mergekit cannot merge and stack layers in one config: {_ALONE}")
    if any(scale < 0.0 for scale in body.stream_scales):
        raise BadRecipe(f"a negative scale also turns the norms, which no mergekit config says: {_ALONE}")
    if body.hops[0].slot != 0 or body.hops[-1].slot != 0:
        raise BadRecipe(
            "mergekit takes embeddings and head from the models of the first and the last slice, and the path begins "
            f"or ends in another model than the one whose embeddings it has: {_ALONE}"
        )
    types = layer_types(donor)
    written = "layer_types" in text_config(donor.config)
    if (
        types is not None
        and (written or len(set(types)) > 1)
        and [types[hop.layer] for hop in body.hops] != list(types)
    ):
        raise BadRecipe(f"mergekit keeps the config's layer_types, which this path changes: {_ALONE}")


def is_path(config: MergekitConfig, layers: int) -> bool:
    """Whether ``config`` moves, repeats or leaves out layers."""
    ends = [0]
    for piece in config.slices:
        if piece.first != ends[-1]:
            return True
        ends.append(layers if piece.stop is None else piece.stop)
    return ends[-1] != layers


def path_of(config: MergekitConfig, checkpoint: Checkpoint) -> PathBody:
    """Return the path that the slices of ``config`` are.

    Raises:
        BadRecipe: they scale other tensors than those that end what a layer adds, or not all of these alike; embeddings
            and head are of different models; a layer does not exist.
    """
    models = [piece.inputs[0].model for piece in config.slices]
    if models[0] != models[-1]:
        raise BadRecipe(
            f"mergekit config: embeddings are those of {models[0].path} (first slice), norm and head those of "
            f"{models[-1].path} (last slice); in a path both belong to one model"
        )
    order = list(dict.fromkeys(models))
    names = by_layer(mergeable_names(checkpoint), checkpoint.layers)
    hops, before = [], 1.0
    for piece, model in zip(config.slices, models, strict=True):
        for layer in range(piece.first, piece.stop or checkpoint.layers):
            if layer not in names:
                raise BadRecipe(f"mergekit config: there is no layer {layer}; the models have {checkpoint.layers}")
            stream_scale = _stream_scale(config, piece, names[layer], checkpoint)
            hops.append(Hop(slot=order.index(model), layer=layer, scale=stream_scale / before))
            before = stream_scale
    return PathBody(slots=tuple(config.models.index(model) for model in order), hops=tuple(hops))


def _stream_scale(config: MergekitConfig, piece: Slice, names: Sequence[str], checkpoint: Checkpoint) -> float:
    """Return C such that the layer's writers are divided by C and nothing else is scaled."""
    model = piece.inputs[0].model
    scales = {name: Asked(config, piece, name, 0.0).value("scale", model) for name in names}
    if set(scales.values()) == {1.0}:
        return 1.0
    writers = folding_of(checkpoint).writers
    gains = {scale for name, scale in scales.items() if name.rpartition(".")[0].endswith(writers)}
    others = {scale for name, scale in scales.items() if not name.rpartition(".")[0].endswith(writers)}
    if len(gains) != 1 or others != {1.0} or min(gains) <= 0.0:
        raise BadRecipe(
            "mergekit config: in slices that move, repeat or leave out layers, scale should be one positive number for "
            f"{' and '.join(writers)} and 1 for all others, got {sorted(gains | others)}"
        )
    return 1.0 / float(gains.pop())
