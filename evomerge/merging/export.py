"""Writing a recipe as an ordinary checkpoint: streamed, complete or not there at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.atomic import check_free, writing_folder
from evomerge.errors import BadRecipe, NotEnoughRoom
from evomerge.merging.adapter import Adapter
from evomerge.merging.aligned import tokenizer_folder
from evomerge.merging.calibrations import keep, named_in, recall
from evomerge.merging.checkpoint import Checkpoint, read_config
from evomerge.merging.companions import companions, copy_companions
from evomerge.merging.compatibility import check, mergeable_names
from evomerge.merging.engine import DTYPES, MergeEngine
from evomerge.merging.memory import cache_within
from evomerge.merging.opening import open_sources
from evomerge.merging.path_export import layer_types, path_config, verify_path
from evomerge.merging.paths import FoldedPath
from evomerge.merging.pieces import Fill
from evomerge.merging.preparations import copy_preparation
from evomerge.merging.rounding import Rounding
from evomerge.merging.safetensors_writer import SHARD_BYTES, info_of, tensor_bytes, write_weights
from evomerge.merging.sources import resolve, verify
from evomerge.shares import Progress
from search_spaces.recipe import PathBody, Recipe

_MARGIN_BYTES = 1 << 20  # for file system metadata


def write_checkpoint(
    recipe: Recipe,
    to: Path,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    card: str | None = None,
    warn: Callable[[str], None] | None = None,
    memory_limit: int | None = None,
) -> Path:
    """Write the model of ``recipe`` as folder ``to`` and return it.

    The scales of a path are folded into the weights; the result is loaded and compared with the path before it is kept.

    The folder holds safetensors, config.json with the recipe's dtype, the tokenizer files, chat template and
    generation config of the recipe's tokenizer source, recipe.json with the calibration prompts and records of
    preparation that it names, and README.md when ``card`` gives its text.
    A few pieces of a tensor are held in memory at a time. ``progress`` is called with the bytes of weights written and
    in total. What rounding to 16 bits leaves of the step from the base goes into the card; ``warn`` hears if that is
    little.
    ``memory_limit`` is the most private memory, in bytes, that the merge may take beside what is loaded already.

    Raises:
        UserMistake: ``to`` exists and is not an empty folder.
        BadSource, BadRecipe: the sources have changed or do not fit the recipe, or the scales of a path cannot be
            folded so that the model stays the same.
        NotEnoughRoom: the disk or the limit is too small; nothing is left behind.
        CandidateFailed: the recipe cannot be merged; nothing is left behind.
    """
    to = Path(to).absolute()
    check_free(to)
    checkpoints, engine = open_merge(recipe, memory_limit=memory_limit, progress=progress)
    rounding = _rounding(recipe, checkpoints)
    weights = _weights(recipe, checkpoints, engine, rounding)
    donor = checkpoints[recipe.tokenizer]
    if isinstance(donor, Adapter):
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


def open_merge(
    recipe: Recipe, *, memory_limit: int | None = None, progress: Progress | None = None
) -> tuple[list[Checkpoint], MergeEngine]:
    """Return the sources of ``recipe``, unchanged and fit for one another, and the engine that merges them.

    Statistics that the recipe needs and that are not in the cache are computed first, which takes one model in memory;
    ``progress`` is called with the runs of calibration prompts that are done, and all.

    Raises:
        BadSource, BadRecipe: they have changed, or do not fit; or the calibration prompts are not here.
        NotEnoughRoom: the merge needs more memory than the limit, in bytes; or there is a limit, and statistics have to
            be computed.
    """
    folders = [verify(source) for source in recipe.sources]
    checkpoints = open_sources(folders, recipe.base, vocabulary=recipe.vocabulary)
    names = mergeable_names(checkpoints[0])
    check(checkpoints, names)
    if named_in(recipe):
        from evomerge.merging.observation import any_missing, default_device, ensure

        if memory_limit is not None and any_missing(recipe):
            raise NotEnoughRoom(
                "--memory-limit: the statistics of this recipe are not in the cache, and computing them takes a whole "
                "model in memory; merge once without the limit, where there is room for it; nothing was written"
            )
        ensure(recipe, checkpoints, device=default_device(), progress=progress)
    cache = cache_within(memory_limit, recipe, checkpoints, names)
    return checkpoints, MergeEngine(checkpoints, names=names, cache_bytes=cache)


@dataclass(frozen=True)
class _Weights:
    """What is written: shapes by name, in order, and what makes a tensor."""

    shapes: Mapping[str, tuple[int, ...]]
    merge: Callable[[str], Fill]


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
        return _Weights(path.shapes, path.merge)

    def merge(name: str) -> Fill:
        made = engine.tensor_merge(recipe, name)
        if rounding is not None:
            rounding.look(name, made.fill)
        return made.fill

    donor = checkpoints[recipe.tokenizer]
    return _Weights({name: donor.info(name).shape for name in engine.order}, merge)


def _check_disk(parent: Path, recipe: Recipe, made: _Weights, donor: Checkpoint) -> None:
    dtype = DTYPES[recipe.dtype]
    weights = sum(tensor_bytes(shape, dtype) for shape in made.shapes.values())
    rest = sum(file.stat().st_size for path in companions(tokenizer_folder(donor)) for file in [path, *path.glob("*")])
    needed, free = weights + rest + _MARGIN_BYTES, shutil.disk_usage(parent).free
    if needed > free:
        raise NotEnoughRoom(
            f"{parent}: the checkpoint needs {needed / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free"
        )


def _write_weights(
    made: _Weights, dtype: torch.dtype, folder: Path, max_shard_bytes: int, progress: Progress | None
) -> None:
    tensors = {name: info_of(shape, dtype) for name, shape in made.shapes.items()}
    total = sum(info.bytes for info in tensors.values())
    written = 0

    def merge(name: str) -> Fill:
        fill = made.merge(name)

        def noted(out: Tensor, first: int) -> None:
            nonlocal written
            fill(out, first)
            written += out.nbytes
            if progress is not None:
                progress(written, total)

        return noted

    write_weights(tensors, folder, merge=merge, max_shard_bytes=max_shard_bytes)


def _write_rest(recipe: Recipe, folder: Path, donor: Checkpoint, card: str | None) -> None:
    copy_companions(tokenizer_folder(donor), folder)
    value = _config(read_config(donor.home), recipe.dtype)
    if isinstance(recipe.body, PathBody):
        value = path_config(value, hops=recipe.body.hops, types=layer_types(donor))
    config = json.dumps(value, indent=2, sort_keys=True)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    write_recipe(recipe, folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write recipe.json into ``folder``, with the calibration prompts and records of preparation that it names."""
    (folder / "recipe.json").write_text(recipe.to_json() + "\n", encoding="utf-8")
    for digest in named_in(recipe):
        keep(recall(digest), folder)
    for source in recipe.sources:
        if source.preparation is not None:
            copy_preparation(resolve(source.path, source.revision), folder)


def _config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return ``config`` for weights in ``dtype``, under the key that current and that older readers know."""
    changed = {key: value for key, value in config.items() if key != "_name_or_path"}
    changed |= {"dtype": dtype, "torch_dtype": dtype}
    nested = changed.get("text_config")
    if isinstance(nested, dict):
        changed["text_config"] = _config(nested, dtype)
    return changed
