"""The tasks of a search, each loaded once, with everything checked that can be before a model is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from evaluators import groups, loading, metrics
from evaluators.errors import TaskError
from evaluators.evaluation import Documents
from evaluators.fingerprint import task_digest
from evaluators.groups import GroupMeasure
from evaluators.library_state import calling_lm_eval
from evaluators.loaded import LoadedTask
from evaluators.metrics import Measure
from evaluators.objective import EvaluationSettings, Objective
from evaluators.objective_checks import check_objectives
from evaluators.objective_kinds import AnyObjective, Language, Perplexity, measured
from evaluators.references import parts_of, task_of
from evaluators.task_index import open_index
from evaluators.texts import load_text


@dataclass(frozen=True)
class TaskSuite:
    """Objectives with their tasks. Building one checks the user's tasks; see `load`.

    Attributes:
        objectives: what is measured; instead of an objective that needs the base what is compared with it.
        loaded: every task that is measured, those of groups included.
        measures: one per objective that is a metric, in order.
    """

    objectives: tuple[AnyObjective, ...]
    settings: EvaluationSettings
    loaded: Mapping[str, LoadedTask]
    measures: tuple[Measure | GroupMeasure, ...]

    @classmethod
    def load(cls, objectives: Sequence[AnyObjective], settings: EvaluationSettings) -> TaskSuite:
        """Load the task of every objective that has documents.

        Raises:
            TaskError: no objective, or one twice; an unknown, unsafe or unsupported task; a data set or text file that
                cannot be loaded; an unknown metric or filter; a tag or group without a score; a task in two versions;
                an objective that does not fit its task.
        """
        _refuse_doubles(objectives)
        asked = measured(objectives)
        texts = [objective for objective in asked if isinstance(objective, Perplexity)]
        others = [objective for objective in asked if not isinstance(objective, Perplexity)]
        loaded, measures = _load_tasks(others, settings)
        for name in dict.fromkeys(text.title for text in texts):
            if name in loaded:
                raise TaskError(f"the text file {name} is called like a task; rename it")
            loaded[name] = load_text(tuple(text for text in texts if text.title == name))
        for task in loaded.values():
            check_objectives(task)
        named = tuple(measures[objective.name] for objective in asked if isinstance(objective, Objective))
        return cls(asked, settings, loaded, named)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the order in which objectives mention them first."""
        return tuple(self.loaded)

    @cached_property
    def parts(self) -> Mapping[str, LoadedTask]:
        """What is asked of models, by name: a task's own requests, its reference answers, or both."""
        return {name: part for task in self.loaded.values() for name, part in parts_of(task).items()}

    def split_into_parts(self, documents: Documents) -> Documents:
        """Return the documents of each part, from those of each task."""
        return Documents({part: documents.ids[task_of(part)] for part in self.parts if task_of(part) in documents.ids})

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that defines scores: the tasks' configurations, their documents, and these settings."""
        of_settings = self.settings.model_dump(
            include={
                "num_fewshot", "fewshot_seed", "apply_chat_template", "fewshot_as_multiturn", "system_instruction",
                "max_length",
            }
        )  # fmt: skip
        if any(task.samples for task in self.loaded.values()):
            of_settings["sampling_seed"] = self.settings.sampling_seed or 0
        of_tasks = {name: [task_digest(task.task), *task.document_digests] for name, task in self.loaded.items()}
        parts: dict[str, Any] = {"settings": of_settings, "tasks": of_tasks}
        if of_groups := {
            measure.name: [measure.weight_by_size, *(part.name for part in measure.parts)]
            for measure in self.measures
            if isinstance(measure, GroupMeasure)
        }:
            parts["groups"] = of_groups
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def default_objectives(name: str, settings: EvaluationSettings) -> list[Objective]:
    """Return the first metric of a task or group, in its own direction; for a tag, or a group that lm-eval has no
    score for, that of each of its tasks. Where there are several filters the first one is taken.

    Raises:
        TaskError: a task is unknown, unsafe, unsupported, cannot be loaded, or has no metric.
    """
    with calling_lm_eval(trusted=False):
        index = open_index([name], settings.include_path)
    return [_first_objective(each, loading.find(each, index, settings)) for each in loading.members_of(name, index)]


def _first_objective(name: str, found: loading.Found) -> Objective:
    if found.group is not None:
        return groups.first_objective(found.group)
    task, _ = found.tasks[name]
    return metrics.first_objective(name, task)


def _resolve(objective: Objective, found: loading.Found) -> Measure | GroupMeasure:
    if found.group is not None:
        return groups.resolve(objective, found.group)
    task, _ = found.tasks[objective.task]
    return metrics.resolve(objective, task)


def _add(measure: Measure, found: loading.Found, loaded: dict[str, LoadedTask]) -> None:
    """Add ``measure`` to its task, and the task if it is new."""
    name = measure.objective.task
    task, _ = found.tasks[name]
    known = loaded.setdefault(name, _new(name, found))
    if known.task is not task and task_digest(known.task) != task_digest(task):
        raise TaskError(
            f"task {name} is asked for in two versions: alone and in a group, or in two groups, that change its "
            "settings; name only one of them"
        )
    if measure.name not in (each.name for each in known.measures):
        loaded[name] = replace(known, measures=(*known.measures, measure))


def _refuse_doubles(objectives: Sequence[AnyObjective]) -> None:
    if not any(objective.documents_of for objective in objectives):
        raise TaskError("objectives is empty or needs no documents; name at least one task or text file")
    names = [objective.name for objective in objectives]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TaskError(f"objective {min(twice)} is named twice; name each task and metric once")


def _load_tasks(
    objectives: Sequence[Any], settings: EvaluationSettings
) -> tuple[dict[str, LoadedTask], dict[str, Measure | GroupMeasure]]:
    """Load the lm-eval tasks and groups of objectives that have one; return tasks and measures by name."""
    loaded: dict[str, LoadedTask] = {}
    measures: dict[str, Measure | GroupMeasure] = {}
    names = list(dict.fromkeys(objective.task for objective in objectives))
    if not names:
        return loaded, measures
    with calling_lm_eval(trusted=False):
        index = open_index(names, settings.include_path)
    counted = [objective.counted for objective in objectives if isinstance(objective, Language)]
    asked = {o.name: o for o in (*objectives, *counted) if isinstance(o, Objective)}
    for name in names:
        found = loading.find(name, index, settings)
        for objective in (o for o in asked.values() if o.task == name):
            measure = measures[objective.name] = _resolve(objective, found)
            for part in measure.parts if isinstance(measure, GroupMeasure) else (measure,):
                _add(part, found, loaded)
        if gauged := tuple(o for o in objectives if o.task == name and not isinstance(o, Objective)):
            _add_gauged(name, gauged, found, loaded)
    return loaded, measures


def _add_gauged(
    name: str, gauged: tuple[AnyObjective, ...], found: loading.Found, loaded: dict[str, LoadedTask]
) -> None:
    if found.group is not None:
        raise TaskError(
            f"objective {gauged[0].name} is for a single task, and {name} is a group; name one of its tasks"
        )
    known = loaded.get(name) or _new(name, found)
    loaded[name] = replace(known, gauged=gauged)


def _new(name: str, found: loading.Found) -> LoadedTask:
    task, documents = found.tasks[name]
    return LoadedTask(name, task, found.trusted, documents, (), runs_code=loading.runs_code(task))
