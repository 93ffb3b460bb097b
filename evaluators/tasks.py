"""The tasks of a search, each loaded once, with everything checked that can be before a model is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lm_eval.tasks import TaskManager

from evaluators import metrics, sampling, task_files
from evaluators.errors import TaskError
from evaluators.fingerprint import document_digest, task_digest
from evaluators.library_state import calling_lm_eval, loading_data_sets
from evaluators.metrics import Measure
from evaluators.objective import EvaluationSettings, Objective

_GENERATION_OPTIONS = sampling.OPTIONS | {
    "until", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "do_sample",
}  # fmt: skip


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
    """Objectives with their tasks. Building one checks the user's tasks; see `load`."""

    objectives: tuple[Objective, ...]
    settings: EvaluationSettings
    loaded: Mapping[str, LoadedTask]

    @classmethod
    def load(cls, objectives: Sequence[Objective], settings: EvaluationSettings) -> TaskSuite:
        """Load the task of every objective.

        Raises:
            TaskError: no objective, or one twice; an unknown, unsafe or unsupported task; a data set that cannot be
                loaded; an unknown metric or filter; sampled generation.
        """
        names = _task_names(objectives)
        with calling_lm_eval(trusted=False):
            index = task_files.open_index(names, settings.include_path)
        loaded = {name: _load(name, index, [o for o in objectives if o.task == name], settings) for name in names}
        return cls(tuple(objectives), settings, loaded)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the order in which objectives mention them first."""
        return tuple(self.loaded)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures of all tasks, in the order of the objectives."""
        by_name = {measure.name: measure for task in self.loaded.values() for measure in task.measures}
        return tuple(by_name[objective.name] for objective in self.objectives)

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
        text = json.dumps({"settings": of_settings, "tasks": of_tasks}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load_task(name: str, settings: EvaluationSettings) -> LoadedTask:
    """Return one task, without measures.

    Raises:
        TaskError: the task is unknown, unsafe, unsupported or cannot be loaded.
    """
    with calling_lm_eval(trusted=False):
        index = task_files.open_index([name], settings.include_path)
    return _load(name, index, [], settings)


def default_objective(task: str, settings: EvaluationSettings) -> Objective:
    """Return the first metric of ``task`` (with its first filter, if it has several) in the task's own direction.

    Raises:
        TaskError: as `load_task`; or the task has no metric.
    """
    return metrics.first_objective(task, load_task(task, settings).task)


def _task_names(objectives: Sequence[Objective]) -> list[str]:
    if not objectives:
        raise TaskError("objectives is empty; name at least one task")
    names = [objective.name for objective in objectives]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TaskError(f"objective {min(twice)} is named twice; name each task and metric once")
    return list(dict.fromkeys(objective.task for objective in objectives))


def _load(name: str, index: TaskManager, objectives: Sequence[Objective], settings: EvaluationSettings) -> LoadedTask:
    entry = index.task_index[name]
    task_files.refuse_unsafe(entry, settings.trusted_paths)
    trusted = task_files.is_trusted(entry, settings.trusted_paths)
    with calling_lm_eval(trusted=trusted), loading_data_sets():
        task = _build(name, index)
        _check_output_type(name, task)
        documents = tuple(dict(document) for document in task.eval_docs)
        _set_fewshot(task, settings)
        measures = tuple(metrics.resolve(objective, task) for objective in objectives)
    return LoadedTask(name, task, trusted, documents, measures)


def _build(name: str, index: TaskManager) -> Any:
    entry = index.task_index[name]
    try:
        return index.load([name])["tasks"][name]
    except Exception as error:  # what a task file makes lm-eval, datasets and Jinja raise is unbounded
        source = {key: entry.cfg.get(key) for key in ("dataset_path", "dataset_name", "dataset_kwargs")}
        tried = ", ".join(f"{key}={value!r}" for key, value in source.items() if value is not None)
        text = " ".join(str(error).split())
        raise TaskError(
            f"task {name} ({entry.yaml_path}) cannot be loaded ({tried or 'no dataset_path'}): "
            f"{type(error).__name__}: {text}"
        ) from error


def _check_output_type(name: str, task: Any) -> None:
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"task {name} needs images or sound; only text is supported")
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskError(f"task {name} executes code that models write (unsafe_code); it is not supported")
    known = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
    if task.OUTPUT_TYPE not in known:
        raise TaskError(f"task {name} has output_type {task.OUTPUT_TYPE!r}; supported: {', '.join(known)}")
    if task.OUTPUT_TYPE == "generate_until":
        _check_generation(name, task.config.generation_kwargs or {})


def _check_generation(name: str, options: Mapping[str, Any]) -> None:
    if strange := sorted(set(options) - _GENERATION_OPTIONS):
        raise TaskError(f"task {name}: generation_kwargs {', '.join(strange)} are not supported")
    temperature = float(options.get("temperature", 0.0))
    if options.get("do_sample") and not temperature > 0.0:
        raise TaskError(
            f"task {name} samples its answers (do_sample: true) at temperature {temperature}; "
            "give its generation_kwargs a temperature above 0, or do_sample: false"
        )


def _set_fewshot(task: Any, settings: EvaluationSettings) -> None:
    """As `lm_eval.simple_evaluate`: a task that fixes 0 examples keeps them."""
    own = task.config.num_fewshot
    if own is None or (settings.num_fewshot is not None and own != 0):
        task.set_config("num_fewshot", settings.num_fewshot or 0)
