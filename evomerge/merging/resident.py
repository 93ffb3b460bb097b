"""A live model whose weights are rewritten in place, candidate after candidate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from evomerge.errors import BadSource, NotEnoughRoom
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import check, mergeable_names
from evomerge.merging.engine import DTYPES, Destination, MergeEngine
from search_spaces.recipe import Recipe

_GROUPS = Path("/sys/fs/cgroup")


class ResidentModel:
    """An ordinary transformers model on one flat buffer, and the engine that merges recipes into it.

    ``model`` is in eval mode and undefined until the first `apply`. Its parameters are views on the buffer; the
    sources stay mapped from disk.
    """

    def __init__(
        self, checkpoints: Sequence[Checkpoint], *, tokenizer: int = 0, dtype: str, device: str = "cpu"
    ) -> None:
        """Build the model of ``checkpoints[tokenizer]``'s config in ``dtype`` on ``device``.

        Raises:
            BadSource: the checkpoints cannot be merged, or transformers names their tensors differently.
            NotEnoughRoom: the buffer does not fit into memory.
        """
        self.dtype = dtype
        names = mergeable_names(checkpoints[0])
        check(checkpoints, names)
        self.engine = MergeEngine(checkpoints, names=names)
        donor = checkpoints[tokenizer]
        shapes = {name: donor.info(name).shape for name in self.engine.order}
        self._flat, views = _allocate(shapes, DTYPES[dtype], torch.device(device), self.engine.private_bytes_needed)
        self.model = _build(donor.path, views, DTYPES[dtype])
        self._destination = Destination(views)

    @property
    def tensors(self) -> Destination:
        """The model's weights by their names in the checkpoints: views on the buffer."""
        return self._destination

    def apply(self, recipe: Recipe) -> None:
        """Merge ``recipe`` into the model.

        Raises:
            BadRecipe: the recipe does not fit the checkpoints, or has another dtype.
            CandidateFailed: see `MergeEngine.merge`; the model is undefined until the next `apply`.
        """
        self.engine.merge(recipe, self._destination)


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
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return one flat buffer and the views on it, side by side in the order of ``shapes``."""
    sizes = {name: int(torch.Size(shape).numel()) for name, shape in shapes.items()}
    needed = sum(sizes.values()) * dtype.itemsize
    if device.type == "cpu":
        free, needed_here = available_bytes(), needed + scratch
    else:
        free, needed_here = torch.cuda.mem_get_info(device)[0], needed
    if needed_here > free:
        raise NotEnoughRoom(
            f"one copy of the model in {str(dtype).removeprefix('torch.')} needs {needed_here / 2**30:.2f} GiB on "
            f"{device}, and {free / 2**30:.2f} GiB are available"
        )
    flat = torch.empty(sum(sizes.values()), dtype=dtype, device=device)
    pieces = torch.split(flat, list(sizes.values()))
    return flat, {name: piece.view(shapes[name]) for name, piece in zip(sizes, pieces, strict=True)}


def _build(folder: Path, views: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """Return the transformers model of ``folder``'s config whose parameters are exactly ``views``.

    transformers takes the state dict's tensors as they are when dtype and device agree. Which parameter is which
    tensor is told by the addresses, so renamings between checkpoint and module names do no harm.
    """
    device = next(iter(views.values())).device
    hosted = views if device.type == "cpu" else {n: torch.empty(v.shape, dtype=dtype) for n, v in views.items()}
    model, info = _from_state_dict(folder, hosted, dtype)
    names = {tensor.data_ptr(): name for name, tensor in hosted.items()}
    found = {own: names.get(parameter.data_ptr()) for own, parameter in model.named_parameters()}
    strangers = sorted(own for own, name in found.items() if name is None)
    unused = sorted(views.keys() - set(found.values()))
    if strangers or unused or info["mismatched_keys"]:
        raise _names_differ(folder, strangers, unused)
    model.requires_grad_(False)
    if device.type != "cpu":
        for own, parameter in model.named_parameters():
            parameter.data = views[str(found[own])]
        model.to(device)  # what is left are the buffers
    return model.eval()


def _from_state_dict(folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoConfig, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise BadSource(f"{folder}: transformers has no causal language model for {config.model_type!r}")
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
        )
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadSource(f"{folder}: transformers cannot build this model without remote code ({first})") from None
    finally:
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return model, info


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
