"""From a search file to its space of paths, checked against the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evaluators.context import context_length
from evomerge.config import SearchFile
from evomerge.errors import BadSearch
from evomerge.merging.aligned import tokenizer_folder
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.engine import DTYPES
from evomerge.merging.folding import folding_of
from evomerge.merging.moments import stream_moments
from evomerge.merging.paths import check_configs
from evomerge.merging.resident import ResidentModel
from search_spaces.courses import ModelSize, Moments
from search_spaces.path_space import PathSpace, PathSpaceSettings, path_space
from search_spaces.recipe import Merge, Source
from search_spaces.tensors import in_stack, layer_of
from search_spaces.vocabulary import Vocabulary

if TYPE_CHECKING:
    from evaluators.splits import Splits
    from evaluators.tasks import TaskSuite

MOST_PROMPTS, MOST_TOKENS = 64, 512  # on which the streams of models are measured


def make_path_space(
    file: SearchFile,
    settings: PathSpaceSettings,
    pinned: tuple[Source, ...],
    checkpoints: Sequence[Checkpoint],
    *,
    vocabulary: Vocabulary | None = None,
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
            vocabulary=vocabulary,
            first=first,
            prompts=prompts,
            size=model_size(checkpoints[0]),
        )
        space = replace(space, tokenizer=_frame(space, checkpoints))
    except ValueError as error:
        raise BadSearch(f"space: {error}") from None
    _check(space, checkpoints)
    return space


def _frame(space: PathSpace, checkpoints: Sequence[Checkpoint]) -> int:
    """Return the position of the source whose config and tokenizer paths have."""
    first = space.models[0]
    return first if isinstance(first, int) and checkpoints[first].home == checkpoints[first].path else 0


def model_size(checkpoint: Checkpoint) -> ModelSize:
    """Return how many parameters a model has, layer by layer."""
    layers = [0] * checkpoint.layers
    outside = 0
    for name in mergeable_names(checkpoint):
        count = math.prod(checkpoint.info(name).shape)
        if in_stack(name):
            layers[layer_of(name, checkpoint.layers)] += count
        else:
            outside += count
    return ModelSize(tuple(layers), outside)


def model_moments(space: PathSpace, checkpoints: Sequence[Checkpoint], suite: TaskSuite, splits: Splits) -> Moments:
    """Return the second moments of the stream in every model of ``space``; of merges that are searched, at their start.

    One model at a time is made, in memory, on the CPU.

    The prompts are the first search documents of every task, with their reference answers.

    Raises:
        TaskError: a prompt cannot be made.
        NotEnoughRoom: there is no memory for a model.
        BadSource: the activations of a model are not finite.
        CandidateFailed: a merge fails.
    """
    from transformers import AutoTokenizer

    from evaluators.answered import PromptSource

    resident = ResidentModel(checkpoints, tokenizer=space.tokenizer, dtype=space.dtype)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(checkpoints[space.tokenizer]), trust_remote_code=False)
    of_tasks = PromptSource(suite, splits).prompts(
        suite.tasks,
        max(1, MOST_PROMPTS // len(suite.tasks)),
        tokenizer,
        context=context_length(resident.model.config, tokenizer),
        most_tokens=MOST_TOKENS,
    )
    prompts = [prompt.tokens for of_task in of_tasks.values() for prompt in of_task]
    return tuple(stream_moments(resident.apply(recipe), prompts) for recipe in space.model_recipes)


def _check(space: PathSpace, checkpoints: Sequence[Checkpoint]) -> None:
    frame = checkpoints[space.tokenizer]
    for model in space.models:
        if isinstance(model, int):
            check_configs(frame, checkpoints[model])
    if space.settings.scales != "none" or space.settings.scale_start is not None:
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
