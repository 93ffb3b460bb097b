"""From a search file to its space of paths, checked against the models."""

from __future__ import annotations

from collections.abc import Sequence

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
    *,
    layers: int,
    first: Merge | None = None,
) -> PathSpace:
    """Return the space of paths of ``file`` over the ``pinned`` sources; ``first`` is what a hybrid search found.

    Raises:
        BadSearch: the space does not fit the models.
    """
    try:
        return path_space(
            settings,
            sources=pinned,
            expert_names=tuple(source.short_name for source in file.sources.experts),
            layers=layers,
            dtype=file.sources.dtype,
            mask_seed=file.optimizer.seed,
            first=first,
        )
    except ValueError as error:
        raise BadSearch(f"space: {error}") from None


def check_paths(space: PathSpace, checkpoints: Sequence[Checkpoint]) -> None:
    """Check that the winner of ``space`` can be exported: layers share a config, and their scales can be folded.

    Raises:
        BadSource: configs differ.
        BadRecipe: scales cannot be folded in this architecture.
    """
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
