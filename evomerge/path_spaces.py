"""From a search file to its space of paths, checked against the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evomerge.config import SearchFile
from evomerge.errors import BadSearch
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import DTYPES
from evomerge.merging.folding import folding_of
from evomerge.merging.paths import check_configs
from search_spaces.path_space import PathSpace, PathSpaceSettings, path_space
from search_spaces.recipe import Merge, Source


def make_path_space(
    file: SearchFile,
    settings: PathSpaceSettings,
    pinned: tuple[Source, ...],
    checkpoints: Sequence[Checkpoint],
    *,
    first: Merge | None = None,
    prompts: str | None = None,
) -> PathSpace:
    """Return the space of paths of ``file`` over ``checkpoints``, in the order of the ``pinned`` sources.

    ``first`` is the merge that a hybrid search found, ``prompts`` the digest of the calibration prompts of operators
    that need statistics. Tokenizer and config are those of model A if it has any: those of merges and adapters are the
    base's.

    Raises:
        BadSearch: the space does not fit the models.
        BadSource: their layers cannot run with one config.
        BadRecipe: scales cannot be folded in this architecture, so no winner could be exported.
    """
    try:
        space = path_space(
            settings,
            sources=pinned,
            expert_names=tuple(source.short_name for source in file.sources.experts),
            layers=checkpoints[0].layers,
            dtype=file.sources.dtype,
            mask_seed=file.optimizer.seed,
            first=first,
            prompts=prompts,
        )
    except ValueError as error:
        raise BadSearch(f"space: {error}") from None
    frame = space.models[0] if isinstance(space.models[0], int) else 0
    if checkpoints[frame].home == checkpoints[frame].path:
        space = replace(space, tokenizer=frame)
    _check(space, checkpoints)
    return space


def _check(space: PathSpace, checkpoints: Sequence[Checkpoint]) -> None:
    frame = checkpoints[space.tokenizer]
    for model in space.models:
        if isinstance(model, int):
            check_configs(frame, checkpoints[model])
    if space.settings.scales != "none":
        folding_of(frame)


def copies(space: PathSpace, checkpoints: Sequence[Checkpoint]) -> int:
    """Return how many models a worker on the CPU holds in memory of its own: merges, and sources of another dtype."""
    dtype, own = DTYPES[space.dtype], 1
    for model in space.models:
        cast = isinstance(model, int) and any(
            checkpoints[model].info(name).dtype is not dtype for name in checkpoints[model].names
        )
        own += cast or not isinstance(model, int)
    return own
