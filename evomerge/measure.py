"""`evomerge evaluate`: any model, measured with the evaluator that searches use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from evaluators.evaluation import Documents, Failure, Score
from evaluators.objective import EvaluationSettings, Objective
from evomerge.errors import BadRecipe
from evomerge.export import read_recipe
from evomerge.results import JOINT, Estimate, estimate_of, joint
from evomerge.scaffold import objectives as parse_objectives
from evomerge.worker import WorkerSpec
from search_spaces.operators import Linear
from search_spaces.recipe import Block, Blocks, Dtype, Recipe, Source


def measure(
    model: str,
    *,
    tasks: Sequence[str],
    settings: EvaluationSettings,
    limit: int | None = None,
    dtype: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Estimate]:
    """Return the estimate of every task's metric, and `joint`, on the tasks' documents.

    Args:
        model: a folder, a Hub id, a recipe (.json) or a mergekit config (.yaml).
        tasks: ``task`` or ``task/metric``.
        limit: the first documents of each task only.
        say: hears of documents that do not fit the model's context.

    Raises:
        UserMistake, TaskError: what is wrong.
    """
    import torch

    from evaluators.tasks import TaskSuite
    from evomerge.merging.sources import resolve

    objectives = tuple(Objective.model_validate(o) for o in parse_objectives(tasks, settings.include_path))
    recipe = _recipe(model, dtype)
    suite = TaskSuite.load(objectives, settings)
    counts = {name: len(task.document_digests) for name, task in suite.loaded.items()}
    ids = {name: tuple(range(count if limit is None else min(limit, count))) for name, count in counts.items()}
    spec = WorkerSpec(
        folders=tuple(str(resolve(source.path, source.revision)) for source in recipe.sources),
        tokenizer=recipe.tokenizer,
        dtype=recipe.dtype,
        objectives=objectives,
        evaluation=settings,
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=torch.get_num_threads(),
    )
    outcome = spec().evaluate(recipe.to_json(), Documents(ids).ids)
    if isinstance(outcome, Failure):
        raise BadRecipe(f"{model}: {outcome.kind.value}: {outcome.message}")
    for task, count in outcome.truncated.items():
        say(
            f"{task}: {count} of {len(ids[task])} documents are longer than the model's context; their beginning is cut"
        )
    return _estimates(objectives, outcome.scores)


def _recipe(model: str, dtype: str | None) -> Recipe:
    if dtype is not None and dtype not in get_args(Dtype):
        raise BadRecipe(f"--dtype {dtype!r}: expected one of {', '.join(get_args(Dtype))}")
    if Path(model).is_file():
        recipe = read_recipe(Path(model))
        return recipe.model_copy(update={"dtype": dtype}) if dtype else recipe
    from evomerge.merging.checkpoint import Checkpoint
    from evomerge.merging.sources import resolve

    checkpoint = Checkpoint.open(resolve(model, None))
    alone = Block(layers=(0, checkpoint.layers), operator=Linear(weights=(1.0,)))
    return Recipe.model_validate(
        {
            "sources": (Source(path=model),),
            "dtype": dtype or str(checkpoint.info(checkpoint.names[0]).dtype).removeprefix("torch."),
            "body": Blocks(blocks=(alone,)),
        }
    )


def _estimates(objectives: Sequence[Objective], scores: Mapping[str, Score]) -> dict[str, Estimate]:
    found = {}
    for objective in objectives:
        found[objective.name] = estimate_of(scores[objective.name])
    if len(objectives) > 1:
        found[JOINT] = joint(list(found.values()), np.ones(len(objectives)))
    return found
