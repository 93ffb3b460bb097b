"""The tasks of a search, each loaded once, with everything checked that can be before a model is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from evaluators import groups, loading, metrics, sampling
from evaluators.errors import TaskError
from evaluators.fingerprint import document_digest, task_digest
from evaluators.groups import GroupMeasure
from evaluators.library_state import calling_lm_eval
from evaluators.metrics import Measure
from evaluators.objective import EvaluationSettings, Objective
from evaluators.task_index import open_index


@dataclass(frozen=True)
class LoadedTask:
    """One lm-eval task with its evaluation documents (test documents, else validation documents).

    Attributes:
        task: the lm-eval object; its few-shot number is set, its requests are not built.
        trusted: whether its templates may render outside the sandbox.
    """

    name: str
    task: Any
    trusted: bool
    documents: tuple[Mapping[str, Any], ...]
    measures: tuple[Measure, ...]

    @property
    def kind(self) -> str:
        """lm-eval's output type."""
        return str(self.task.OUTPUT_TYPE)

    @property
    def samples(self) -> bool:
        """Whether its answers are sampled."""
        return self.kind == "generate_until" and sampling.is_sampled(self.task.config.generation_kwargs or {})

    @cached_property
    def document_digests(self) -> tuple[str, ...]:
        """SHA-256 of each document's content, in the task's order."""
        return tuple(document_digest(document) for document in self.documents)


@dataclass(frozen=True)
class TaskSuite:
    """Objectives with their tasks. Building one checks the user's tasks; see `load`.

    Attributes:
        loaded: every task that is measured, those of groups included.
        measures: one per objective, in order.
    """

    objectives: tuple[Objective, ...]
    settings: EvaluationSettings
    loaded: Mapping[str, LoadedTask]
    measures: tuple[Measure | GroupMeasure, ...]

    @classmethod
    def load(cls, objectives: Sequence[Objective], settings: EvaluationSettings) -> TaskSuite:
        """Load the task or group of every objective.

        Raises:
            TaskError: no objective, or one twice; an unknown, unsafe or unsupported task; a data set that cannot be
                loaded; an unknown metric or filter; a tag or group without a score; a task in two versions.
        """
        names = _task_names(objectives)
        with calling_lm_eval(trusted=False):
            index = open_index(names, settings.include_path)
        loaded: dict[str, LoadedTask] = {}
        measures: dict[str, Measure | GroupMeasure] = {}
        for name in names:
            found = loading.find(name, index, settings)
            for objective in (o for o in objectives if o.task == name):
                measure = measures[objective.name] = _resolve(objective, found)
                for part in measure.parts if isinstance(measure, GroupMeasure) else (measure,):
                    _add(part, found, loaded)
        return cls(tuple(objectives), settings, loaded, tuple(measures[objective.name] for objective in objectives))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the order in which objectives mention them first."""
        return tuple(self.loaded)

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
    task, documents = found.tasks[name]
    new = LoadedTask(name, task, found.trusted, documents, (measure,))
    known = loaded.setdefault(name, new)
    if known.task is not task and task_digest(known.task) != task_digest(task):
        raise TaskError(
            f"task {name} is asked for in two versions: alone and in a group, or in two groups, that change its "
            "settings; name only one of them"
        )
    if measure.name not in (each.name for each in known.measures):
        loaded[name] = replace(known, measures=(*known.measures, measure))


def _task_names(objectives: Sequence[Objective]) -> list[str]:
    if not objectives:
        raise TaskError("objectives is empty; name at least one task")
    names = [objective.name for objective in objectives]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TaskError(f"objective {min(twice)} is named twice; name each task and metric once")
    return list(dict.fromkeys(objective.task for objective in objectives))
