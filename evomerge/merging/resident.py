"""A live model whose weights are rewritten in place, candidate after candidate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from evomerge.errors import BadRecipe, BadSource, NotEnoughRoom
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import check, mergeable_names
from evomerge.merging.engine import DTYPES, Destination, MergeEngine
from evomerge.merging.fused import Fused, as_one, fused_parameters, laid_out
from evomerge.merging.paths import FoldedPath, SlotModels, folded_model, path_model
from evomerge.merging.placement import Devices, Placement, place
from evomerge.merging.spread import follow_the_weights
from search_spaces.recipe import PathBody, Recipe

_GROUPS = Path("/sys/fs/cgroup")


class ResidentModel:
    """An ordinary transformers model on one flat buffer a device, and the engine that merges recipes into it.

    ``model`` is in eval mode and undefined until the first `apply` of a merge. Its parameters are views on the buffers;
    the sources stay mapped from disk. A path is a model of its own, made of layers of the sources and of merges.

    Attributes:
        placements: what lies where, of each copy of the model's weights that is spread over several devices.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        *,
        tokenizer: int = 0,
        dtype: str,
        device: Devices = "cpu",
    ) -> None:
        """Build the model of ``checkpoints[tokenizer]``'s config in ``dtype`` on ``device``, or spread over several.

        Raises:
            BadSource: the checkpoints cannot be merged, or transformers names their tensors differently.
            NotEnoughRoom: a buffer does not fit into memory.
        """
        self.dtype = dtype
        names = mergeable_names(checkpoints[0])
        check(checkpoints, names)
        self.engine = MergeEngine(checkpoints, names=names)
        donor = checkpoints[tokenizer]
        fused = fused_parameters(donor.home, self.engine.order)
        shapes = {name: donor.info(name).shape for name in laid_out(self.engine.order, fused)}
        scratch = self.engine.private_bytes_needed

        def allocate() -> dict[str, Tensor]:
            if isinstance(device, str):
                return _allocate(shapes, DTYPES[dtype], torch.device(device), scratch)
            self.placements.append(_placed(shapes, DTYPES[dtype], device, donor.layers))
            return _allocate_spread(shapes, DTYPES[dtype], self.placements[-1], scratch)

        def build(tensors: Mapping[str, Tensor]) -> Any:
            return _build(donor.home, dict(tensors), DTYPES[dtype], fused)

        self.placements: list[Placement] = []
        views = allocate()
        self.model = build(views)
        self._destination = Destination(views)
        self._checkpoints = tuple(checkpoints)
        mappable = device == "cpu" and not fused
        self._slots = SlotModels(checkpoints, self.engine, build, allocate, mappable=mappable)

    @property
    def tensors(self) -> Destination:
        """The model's weights by their names in the checkpoints: views on the buffer."""
        return self._destination

    def apply(self, recipe: Recipe, *, folded: bool = False) -> Any:
        """Merge ``recipe`` into the model, or lay its path; return the live model, which the next `apply` may change.

        Args:
            folded: run a path with its scales folded into the weights, as the checkpoint that export writes; otherwise
                it runs by reference, and only the residual stream is scaled.

        Raises:
            BadRecipe: the recipe does not fit the checkpoints, or has another dtype.
            CandidateFailed: see `MergeEngine.merge`; the model is undefined until the next `apply`.
        """
        body = recipe.body
        if not isinstance(body, PathBody):
            self.engine.merge(recipe, self._destination)
            return self.model
        if recipe.dtype != self.dtype:
            raise BadRecipe(f"the recipe is {recipe.dtype}, but the resident model is {self.dtype}")
        models = self._slots.of(recipe, body)
        if folded:
            return folded_model(body, models, FoldedPath(recipe, self._checkpoints, self.engine))
        return path_model(body, models)


def available_bytes() -> int:
    """Return the memory that this process may still take, in bytes: the machine's, or the control group's if less."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_GROUPS / "memory.max").read_text().strip()
        if limit == "max":
            return free
        used = int((_GROUPS / "memory.current").read_text())
        lines = (_GROUPS / "memory.stat").read_text().splitlines()
        reclaimable = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError):
        return free
    return min(free, int(limit) - used + reclaimable)


def _allocate(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device, scratch: int
) -> dict[str, Tensor]:
    """Return views on one flat buffer, side by side in the order of ``shapes``."""
    sizes = _elements(shapes)
    needed = sum(sizes.values()) * dtype.itemsize
    free, needed_here = free_bytes(device), needed + (scratch if device.type == "cpu" else 0)
    if needed_here > free:
        raise NotEnoughRoom(
            f"one copy of the model in {str(dtype).removeprefix('torch.')} needs {needed_here / 2**30:.2f} GiB on "
            f"{device}, and {free / 2**30:.2f} GiB are available"
        )
    flat = torch.empty(sum(sizes.values()), dtype=dtype, device=device)
    pieces = torch.split(flat, list(sizes.values()))
    return {name: piece.view(shapes[name]) for name, piece in zip(sizes, pieces, strict=True)}


def _elements(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes.items()}


def free_bytes(device: torch.device) -> int:
    """Return the memory of ``device`` that this process may still take, in bytes."""
    return available_bytes() if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[0])


def _placed(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, devices: tuple[str, ...], layers: int) -> Placement:
    sizes = {name: size * dtype.itemsize for name, size in _elements(shapes).items()}
    return place(sizes, layers=layers, rooms=[(device, free_bytes(torch.device(device))) for device in devices])


def _allocate_spread(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, placement: Placement, scratch: int
) -> dict[str, Tensor]:
    views: dict[str, Tensor] = {}
    for number, device in enumerate(placement.devices):
        own = {name: shape for name, shape in shapes.items() if placement.position(name) == number}
        if own:
            views |= _allocate(own, dtype, torch.device(device), scratch)
    return views


def _build(folder: Path, views: dict[str, Tensor], dtype: torch.dtype, fused: Fused) -> Any:
    """Return the transformers model of ``folder``'s config whose parameters are exactly ``views``.

    transformers takes the state dict's tensors as they are when dtype and device agree. Which parameter is which
    tensor is told by the addresses, so renamings between checkpoint and module names do no harm. Those in ``fused`` are
    copies of several tensors and become views on them.
    """
    device = next(iter(views.values())).device
    hosted = views if device.type == "cpu" else {n: torch.empty(v.shape, dtype=dtype) for n, v in views.items()}
    model, info = _from_state_dict(folder, hosted, dtype)
    names = {tensor.data_ptr(): name for name, tensor in hosted.items()}
    found = {own: names.get(parameter.data_ptr()) for own, parameter in model.named_parameters()}
    for own, parts in fused.items():
        parameter = model.get_parameter(own)
        whole = as_one(parts, views, parameter.shape)
        if whole is not None and whole.numel() == sum(views[part].numel() for part in parts):
            parameter.data, found[own] = whole, parts[0]
    strangers = sorted(own for own, name in found.items() if name is None)
    used = {part for own, name in found.items() for part in (fused[own] if own in fused and name else (name,))}
    unused = sorted(views.keys() - used)
    if strangers or unused or info["mismatched_keys"]:
        raise _names_differ(folder, strangers, unused)
    model.requires_grad_(False)
    if device.type != "cpu":
        for own, parameter in model.named_parameters():
            if own not in fused:
                parameter.data = views[str(found[own])]
        if len({view.device for view in views.values()}) > 1:
            follow_the_weights(model)
        else:
            model.to(device)  # what is left are the buffers
    return model.eval()


def _from_state_dict(folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoConfig, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise BadSource(f"{folder}: transformers has no causal language model for {config.model_type!r}")
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with quiet():
            model, info = model_class.from_pretrained(
                None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
            )
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadSource(f"{folder}: transformers cannot build this model without remote code ({first})") from None
    return model, info


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers draws no progress bars."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _names_differ(folder: Path, strangers: list[str], unused: list[str]) -> BadSource:
    what = []
    if strangers:
        what.append(f"{len(strangers)} parameters are not in the files, first {strangers[0]!r}")
    if unused:
        what.append(f"{len(unused)} tensors of the files are not parameters, first {unused[0]!r}")
    return BadSource(
        f"{folder}: its tensors do not match transformers' model: {'; '.join(what) or 'shapes differ'}. "
        "Load it with AutoModelForCausalLM, save it with save_pretrained and use that folder"
    )
