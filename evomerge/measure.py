"""`evomerge evaluate`: any model, measured with the evaluator that searches use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from evaluators.evaluation import Documents, Failure, Score
from evaluators.objective import EvaluationSettings, Objective
from evaluators.objective_kinds import NEEDS_BASE, AnyObjective
from evomerge.config import read_mapping, with_absolute_file
from evomerge.errors import BadRecipe, BadSearch
from evomerge.explain import explain
from evomerge.export import in_dtype, read_recipe
from evomerge.results import JOINT, Estimate, estimate_of, joint
from evomerge.scaffold import objectives as parse_objectives
from evomerge.worker import WorkerSpec
from search_spaces.recipe import Recipe, Source, alone

if TYPE_CHECKING:
    from evaluators.endpoint import EndpointSettings
    from evaluators.tasks import TaskSuite

_OBJECTIVE: TypeAdapter[AnyObjective] = TypeAdapter(AnyObjective)


def measure(
    model: str,
    *,
    objectives: Sequence[AnyObjective],
    settings: EvaluationSettings,
    limit: int | None = None,
    dtype: str | None = None,
    base: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Estimate]:
    """Return the estimate of every objective on the tasks' documents, and `joint` of metrics that are maximised.

    Args:
        model: a folder, a Hub id, a recipe (.json) or a mergekit config (.yaml).
        limit: the first documents of each task only.
        base: a folder or a Hub id that objectives relative to a base mean; a recipe names its own.
        say: hears of documents that do not fit the model's context, and of code that ran out of its limits.

    Raises:
        UserMistake, TaskError: what is wrong.
    """
    import torch

    from evaluators.tasks import TaskSuite
    from evomerge.merging.sources import verify

    recipe = _recipe(model, dtype, base)
    documents = _documents(TaskSuite.load(objectives, settings), limit)
    own_base = Path(model).is_file() or base is not None
    spec = WorkerSpec(
        folders=tuple(str(verify(source)) for source in recipe.sources),
        tokenizer=recipe.tokenizer,
        dtype=recipe.dtype,
        objectives=tuple(objectives),
        evaluation=settings,
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=torch.get_num_threads(),
        base=recipe.base if own_base else None,
        vocabulary=recipe.vocabulary,
    )
    outcome = spec().evaluate(recipe.to_json(), documents.ids, as_exported=True)
    if isinstance(outcome, Failure):
        raise BadRecipe(f"{model}: {outcome.kind.value}: {outcome.message}")
    for task, cut in outcome.truncated.items():
        count = len(documents.ids[task])
        say(f"{task}: {cut} of {count} documents are longer than the model's context; their beginning is cut")
    for task, over in outcome.over_limits.items():
        say(f"{task}: the code of {over} of {len(documents.ids[task])} documents ran out of its limits and scores 0")
    return _estimates(objectives, outcome.scores)


def measure_endpoint(
    endpoint: EndpointSettings,
    *,
    objectives: Sequence[AnyObjective],
    settings: EvaluationSettings,
    limit: int | None = None,
) -> dict[str, Estimate]:
    """Return the estimates of a model behind an API; arguments and result as those of `measure`.

    Raises:
        UserMistake, TaskError: what is wrong.
    """
    from evaluators.endpoint import EndpointEvaluator
    from evaluators.tasks import TaskSuite

    if relative := [objective.name for objective in objectives if isinstance(objective, NEEDS_BASE)]:
        raise BadSearch(f"objective {relative[0]} compares a model with its base, and an endpoint has none")
    suite = TaskSuite.load(objectives, settings)
    outcome = EndpointEvaluator(suite, endpoint).evaluate(None, _documents(suite, limit))
    if isinstance(outcome, Failure):
        raise BadSearch(f"{endpoint.model}: {outcome.kind.value}: {outcome.message}")
    return _estimates(objectives, outcome.scores)


def read_objectives(tasks: Sequence[str], file: Path | None, settings: EvaluationSettings) -> tuple[AnyObjective, ...]:
    """Return the objectives that ``tasks`` (``task`` or ``task/metric``) and a YAML file name.

    The file has a list `objectives` as a search file has; text files in it are relative to it.

    Raises:
        BadSearch: there is none, or the file breaks the schema.
    """
    objectives = [_OBJECTIVE.validate_python(o) for o in parse_objectives(tasks, settings)]
    if file is not None:
        listed = read_mapping(file).get("objectives")
        try:
            found = _Listed.model_validate({"objectives": listed}).objectives
        except ValidationError as error:
            raise BadSearch(f"{file}: {explain(error, _Listed)}") from None
        objectives += [with_absolute_file(objective, file.resolve().parent) for objective in found]
    if not objectives:
        raise BadSearch("evaluate needs something to measure: --tasks, --objectives or both")
    return tuple(objectives)


class _Listed(BaseModel):
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)


def _documents(suite: TaskSuite, limit: int | None) -> Documents:
    return Documents({name: tuple(range(len(task.documents)))[:limit] for name, task in suite.loaded.items()})


def _recipe(model: str, dtype: str | None, base: str | None) -> Recipe:
    if Path(model).is_file():
        if base is not None:
            raise BadRecipe(f"--base: {model} names its own base; leave --base out")
        return in_dtype(read_recipe(Path(model)), dtype)
    from evomerge.merging.adapter import is_adapter
    from evomerge.merging.opening import open_sources
    from evomerge.merging.sources import resolve

    paths = (model,) if base is None else (model, base)
    folders = [resolve(path, None) for path in paths]
    checkpoint = open_sources(folders, len(paths) - 1)[-1]
    recipe = Recipe.model_validate(
        {
            "sources": tuple(Source(path=path) for path in paths),
            "base": len(paths) - 1,
            "tokenizer": len(paths) - 1 if is_adapter(folders[0]) else 0,
            "dtype": str(checkpoint.info(checkpoint.names[0]).dtype).removeprefix("torch."),
            "body": alone(0, len(paths)),
        }
    )
    return in_dtype(recipe, dtype)


def _estimates(objectives: Sequence[AnyObjective], scores: Mapping[str, Score]) -> dict[str, Estimate]:
    found = {}
    for objective in objectives:
        found[objective.name] = estimate_of(scores[objective.name])
    # without seeds there is no common scale; rates that are maximised share theirs
    if len(objectives) > 1 and all(isinstance(o, Objective) and o.direction == "maximize" for o in objectives):
        found[JOINT] = joint(list(found.values()), np.ones(len(objectives)))
    return found
