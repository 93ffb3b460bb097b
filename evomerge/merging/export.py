"""Writing a recipe as an ordinary checkpoint: streamed, complete or not there at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import BadRecipe, NotEnoughRoom, UserMistake
from evomerge.merging.adapter import open_sources
from evomerge.merging.calibrations import keep, named_in, recall
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import check, mergeable_names
from evomerge.merging.engine import DTYPES, MergeEngine
from evomerge.merging.path_export import layer_types, path_config, verify_path
from evomerge.merging.paths import FoldedPath
from evomerge.merging.rounding import Rounding
from evomerge.merging.safetensors_writer import plan_shards, tensor_bytes, write_index, write_shard
from evomerge.merging.sources import verify
from search_spaces.recipe import PathBody, Recipe

SHARD_BYTES = 5_000_000_000
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "*.bpe.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
_MARGIN_BYTES = 1 << 20  # for file system metadata
Progress = Callable[[int, int], None]


def write_checkpoint(
    recipe: Recipe,
    to: Path,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    card: str | None = None,
    warn: Callable[[str], None] | None = None,
) -> Path:
    """Write the model of ``recipe`` as folder ``to`` and return it.

    The scales of a path are folded into the weights; the result is loaded and compared with the path before it is kept.

    The folder holds safetensors, config.json with the recipe's dtype, the tokenizer files, chat template and
    generation config of the recipe's tokenizer source, recipe.json with the calibration prompts that it names, and
    README.md when ``card`` gives its text.
    One tensor is held in memory at a time. ``progress`` is called with the bytes of weights written and in total. What
    rounding to 16 bits leaves of the step from the base goes into the card; ``warn`` hears if that is little.

    Raises:
        UserMistake: ``to`` exists and is not an empty folder.
        BadSource, BadRecipe: the sources have changed or do not fit the recipe, or the scales of a path cannot be
            folded so that the model stays the same.
        NotEnoughRoom: the disk is too small; nothing is left behind.
        CandidateFailed: the recipe cannot be merged; nothing is left behind.
    """
    to = Path(to).absolute()
    _check_free(to)
    checkpoints, engine = open_merge(recipe, progress=progress)
    rounding = _rounding(recipe, checkpoints)
    weights = _weights(recipe, checkpoints, engine, rounding)
    donor = checkpoints[recipe.tokenizer]
    if donor.home != donor.path:
        raise BadRecipe(f"{donor.path} is an adapter and has no config: give the base as the recipe's tokenizer")
    to.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(to.parent, recipe, weights, donor)
    with writing_folder(to) as partial:
        _write_weights(weights, DTYPES[recipe.dtype], partial, max_shard_bytes, progress)
        sentence = rounding.sentence if rounding is not None else None
        _write_rest(recipe, partial, donor, f"{card}\n\n{sentence}\n" if card is not None and sentence else card)
        if isinstance(recipe.body, PathBody):
            verify_path(recipe, checkpoints, partial)
    if warn is not None and rounding is not None and rounding.warning:
        warn(rounding.warning)
    return to


def open_merge(recipe: Recipe, *, progress: Progress | None = None) -> tuple[list[Checkpoint], MergeEngine]:
    """Return the sources of ``recipe``, unchanged and fit for one another, and the engine that merges them.

    Statistics that the recipe needs and that are not in the cache are computed now; ``progress`` is called with the
    runs of calibration prompts that are done, and all.

    Raises:
        BadSource, BadRecipe: they have changed, or do not fit; or the calibration prompts are not here.
    """
    checkpoints = open_sources([verify(source) for source in recipe.sources], recipe.base)
    names = mergeable_names(checkpoints[0])
    check(checkpoints, names)
    if named_in(recipe):
        from evomerge.merging.observation import default_device, ensure

        ensure(recipe, checkpoints, device=default_device(), progress=progress)
    return checkpoints, MergeEngine(checkpoints, names=names)


@contextmanager
def writing_folder(to: Path) -> Iterator[Path]:
    """Yield a new folder beside ``to`` that gets its name at the end, synced, or vanishes on any error.

    Raises:
        UserMistake: ``to`` exists and is not an empty folder.
        NotEnoughRoom: the disk is full.
    """
    to = to.absolute()
    _check_free(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.parent / f".{to.name}.partial-{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        yield partial
        _publish(partial, to)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NotEnoughRoom(f"{to.parent}: the disk is full; nothing was left behind") from error
        raise


def _check_free(to: Path) -> None:
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserMistake(f"{to}: exists already; give a folder that does not exist or is empty")


@dataclass(frozen=True)
class _Weights:
    """What is written: shapes by name, in order, and the function that makes a tensor."""

    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], Tensor]


def _rounding(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> Rounding | None:
    """Return who looks at the cast; none where nothing is rounded or there is no base to step from."""
    if recipe.base is None or recipe.dtype == "float32" or isinstance(recipe.body, PathBody):
        return None
    return Rounding(checkpoints[recipe.base], DTYPES[recipe.dtype])


def _weights(
    recipe: Recipe, checkpoints: Sequence[Checkpoint], engine: MergeEngine, rounding: Rounding | None
) -> _Weights:
    if isinstance(recipe.body, PathBody):
        path = FoldedPath(recipe, checkpoints, engine)
        return _Weights(path.shapes, path.tensor)
    donor = checkpoints[recipe.tokenizer]
    return _Weights(
        {name: donor.info(name).shape for name in engine.order},
        lambda name: engine.merge_tensor(recipe, name, rounding=rounding),
    )


def _check_disk(parent: Path, recipe: Recipe, made: _Weights, donor: Checkpoint) -> None:
    dtype = DTYPES[recipe.dtype]
    weights = sum(tensor_bytes(shape, dtype) for shape in made.shapes.values())
    rest = sum(file.stat().st_size for path in _companions(donor.path) for file in [path, *path.glob("*")])
    needed, free = weights + rest + _MARGIN_BYTES, shutil.disk_usage(parent).free
    if needed > free:
        raise NotEnoughRoom(
            f"{parent}: the checkpoint needs {needed / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free"
        )


def _write_weights(
    made: _Weights, dtype: torch.dtype, folder: Path, max_shard_bytes: int, progress: Progress | None
) -> None:
    total = sum(tensor_bytes(shape, dtype) for shape in made.shapes.values())
    written = 0

    def tensor(name: str) -> Tensor:
        nonlocal written
        value = made.tensor(name)
        written += tensor_bytes(made.shapes[name], dtype)
        if progress is not None:
            progress(written, total)
        return value

    shards = plan_shards(made.shapes, dtype, max_shard_bytes=max_shard_bytes)
    for shard in shards:
        write_shard(shard, folder, dtype, tensor=tensor)
    write_index(shards, folder, dtype)


def _write_rest(recipe: Recipe, folder: Path, donor: Checkpoint, card: str | None) -> None:
    for path in _companions(donor.path):
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)
    value = _config(donor.config, recipe.dtype)
    if isinstance(recipe.body, PathBody):
        value = path_config(value, hops=recipe.body.hops, types=layer_types(donor))
    config = json.dumps(value, indent=2, sort_keys=True)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    (folder / "recipe.json").write_text(recipe.to_json() + "\n", encoding="utf-8")
    for digest in named_in(recipe):
        keep(recall(digest), folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _companions(folder: Path) -> list[Path]:
    return sorted({path for pattern in _COPIED for path in folder.glob(pattern)})


def _config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return ``config`` for weights in ``dtype``, under the key that current and that older readers know."""
    changed = {key: value for key, value in config.items() if key != "_name_or_path"}
    changed |= {"dtype": dtype, "torch_dtype": dtype}
    nested = changed.get("text_config")
    if isinstance(nested, dict):
        changed["text_config"] = _config(nested, dtype)
    return changed


def _publish(partial: Path, to: Path) -> None:
    """Sync every file and the folder, then give it its name in one step."""
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    partial.rename(to)
    _sync(to.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
