"""From the name in an objective to lm-eval's tasks, with everything checked that can be before a model is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import GROUP_FIELD_NAMES
from lm_eval.tasks._index import Entry, Kind

from evaluators import sampling, task_files
from evaluators.errors import TaskError, one_line
from evaluators.library_state import calling_lm_eval, loading_data_sets
from evaluators.objective import EvaluationSettings
from evaluators.task_index import closure, members

_GENERATION_OPTIONS = sampling.OPTIONS | {
    "until", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "do_sample",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a name stands for.

    Attributes:
        tasks: lm-eval's tasks by name, their few-shot number set, and their evaluation documents.
        group: None for a single task.
        trusted: whether templates may render outside the sandbox.
    """

    tasks: Mapping[str, tuple[Any, tuple[Mapping[str, Any], ...]]]
    group: Group | None
    trusted: bool


def find(name: str, index: TaskManager, settings: EvaluationSettings) -> Found:
    """Load the task or group ``name``.

    Raises:
        TaskError: a tag; unsafe, unsupported, or not to be loaded.
    """
    entry = index.task_index[name]
    if entry.kind is Kind.TAG:
        raise TaskError(
            f"{name} is a tag, so lm-eval has no score for it; name its tasks one by one "
            f"({', '.join(sorted(entry.tags))}), or a group of your own that has an aggregate_metric_list"
        )
    entries = closure(name, index.task_index).entries
    for each in entries:
        task_files.refuse_unsafe(each, settings.trusted_paths, allow_code_execution=settings.allow_code_execution)
        if task_files.executes_code(each):
            os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")  # code_eval asks for it when it is loaded
    trusted = all(task_files.is_trusted(each, settings.trusted_paths) for each in entries)
    with calling_lm_eval(trusted=trusted), loading_data_sets():
        built = _build(name, index)
        tasks = {}
        for task_name, task in built["tasks"].items():
            _check_output_type(task_name, task)
            if runs_code(task) and not settings.allow_code_execution:
                raise TaskError(f"task {task_name} executes code that models write, which is not allowed")
            _set_fewshot(task, settings)
            tasks[task_name] = (task, tuple(dict(document) for document in task.eval_docs))
    group = built["groups"].get(name)
    if group is not None and not tasks:
        raise TaskError(f"group {name} ({entry.yaml_path}) has no tasks; `task` must be a list of them")
    return Found(tasks, group, trusted)


def members_of(name: str, index: TaskManager, within: tuple[str, ...] = ()) -> list[str]:
    """Return the tasks and groups with a score of their own that ``name`` stands for: itself, unless it has none.

    Args:
        within: the groups that led to it.

    Raises:
        TaskError: a group without a score does not just name its tasks, or holds itself.
    """
    if name in within:
        raise TaskError(f"group {name} holds itself: {' > '.join((*within, name))}")
    entry = index.task_index[name]
    if entry.kind is Kind.TAG:
        return sorted(entry.tags)
    config = entry.cfg or {}
    if entry.kind is not Kind.GROUP or config.get("aggregate_metric_list"):
        return [name]
    inside = members(config)
    if not inside or not all(isinstance(each, str) for each in inside) or set(config) - GROUP_FIELD_NAMES:
        raise TaskError(
            f"group {name} ({entry.yaml_path}) has no aggregate_metric_list, so lm-eval has no score for it, and it "
            "changes settings of its tasks, so they cannot be taken one by one; give it an aggregate_metric_list"
        )
    return list(dict.fromkeys(member for each in inside for member in members_of(each, index, (*within, name))))


def runs_code(task: Any) -> bool:
    """Whether judging an answer to lm-eval's ``task`` may execute it."""
    metrics = set(task.aggregation()) & set(task_files.EXECUTING_METRICS)
    return bool(getattr(task, "UNSAFE_CODE", False)) or bool(metrics)


def _build(name: str, index: TaskManager) -> Any:
    entry = index.task_index[name]
    try:
        return index.load([name])
    except Exception as error:  # what a task file makes lm-eval, datasets and Jinja raise is unbounded
        if entry.kind is Kind.GROUP:
            for each in closure(name, index.task_index).entries:
                if each.kind is not Kind.GROUP:
                    _build(each.name, index)  # which of them it was
        text = one_line(error)
        raise TaskError(
            f"{entry.kind.name.lower().removeprefix('py_')} {name} ({entry.yaml_path}) cannot be loaded "
            f"({_tried(entry)}): {type(error).__name__}: {text}"
        ) from error


def _tried(entry: Entry) -> str:
    if entry.kind is Kind.GROUP:
        return "each of its tasks alone can be"
    source = {key: (entry.cfg or {}).get(key) for key in ("dataset_path", "dataset_name", "dataset_kwargs")}
    return ", ".join(f"{key}={value!r}" for key, value in source.items() if value is not None) or "no dataset_path"


def _check_output_type(name: str, task: Any) -> None:
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"task {name} needs images or sound; only text is supported")
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
