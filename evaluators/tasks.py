"""The tasks of a search, each loaded once, with everything checked that can be before a model is there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lm_eval.tasks import TaskManager

from evaluators import metrics, task_files
from evaluators.errors import TaskError
from evaluators.evaluation import Documents
from evaluators.fingerprint import task_digest
from evaluators.library_state import calling_lm_eval, loading_data_sets
from evaluators.loaded import LoadedTask
from evaluators.metrics import Measure
from evaluators.objective import EvaluationSettings, Objective
from evaluators.objective_checks import check_objectives
from evaluators.objective_kinds import AnyObjective, Language, Perplexity, measured
from evaluators.references import parts_of, task_of
from evaluators.texts import load_text

_GREEDY_OPTIONS = {
    "until", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens",
    "do_sample", "temperature", "top_p", "top_k",
}  # fmt: skip


@dataclass(frozen=True)
class TaskSuite:
    """Objectives with their tasks. Building one checks the user's tasks; see `load`.

    Attributes:
        objectives: what is measured; instead of an objective that needs the base what is compared with it.
    """

    objectives: tuple[AnyObjective, ...]
    settings: EvaluationSettings
    loaded: Mapping[str, LoadedTask]

    @classmethod
    def load(cls, objectives: Sequence[AnyObjective], settings: EvaluationSettings) -> TaskSuite:
        """Load the task of every objective that has documents.

        Raises:
            TaskError: no objective, or one twice; an unknown, unsafe or unsupported task; a data set or text file that
                cannot be loaded; an unknown metric or filter; sampled generation; an objective that does not fit
                its task.
        """
        _refuse_doubles(objectives)
        asked = measured(objectives)
        texts = [objective for objective in asked if isinstance(objective, Perplexity)]
        others = [objective for objective in asked if not isinstance(objective, Perplexity)]
        loaded = _load_tasks(others, settings)
        for name in dict.fromkeys(text.title for text in texts):
            if name in loaded:
                raise TaskError(f"the text file {name} is called like a task; rename it")
            loaded[name] = load_text(tuple(text for text in texts if text.title == name))
        for task in loaded.values():
            check_objectives(task)
        return cls(asked, settings, loaded)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the order in which objectives mention them first."""
        return tuple(self.loaded)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures of all metrics, in the order of the objectives."""
        by_name = {measure.name: measure for task in self.loaded.values() for measure in task.measures}
        return tuple(by_name[objective.name] for objective in self.objectives if isinstance(objective, Objective))

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


def _refuse_doubles(objectives: Sequence[AnyObjective]) -> None:
    if not any(objective.documents_of for objective in objectives):
        raise TaskError("objectives is empty or needs no documents; name at least one task or text file")
    names = [objective.name for objective in objectives]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TaskError(f"objective {min(twice)} is named twice; name each task and metric once")


def _load_tasks(objectives: Sequence[Any], settings: EvaluationSettings) -> dict[str, LoadedTask]:
    """Load the lm-eval tasks of objectives that have one."""
    names = list(dict.fromkeys(objective.task for objective in objectives))
    if not names:
        return {}
    with calling_lm_eval(trusted=False):
        index = task_files.open_index(names, settings.include_path)
    gauged = [objective for objective in objectives if not isinstance(objective, Objective)]
    counted = [o.counted for o in gauged if isinstance(o, Language)]
    metrics_asked = {o.name: o for o in (*objectives, *counted) if isinstance(o, Objective)}
    loaded = {}
    for name in names:
        task = _load(name, index, [o for o in metrics_asked.values() if o.task == name], settings)
        loaded[name] = replace(task, gauged=tuple(o for o in gauged if o.task == name))
    return loaded


def _load(name: str, index: TaskManager, objectives: Sequence[Objective], settings: EvaluationSettings) -> LoadedTask:
    entry = index.task_index[name]
    task_files.refuse_unsafe(entry, settings.trusted_paths, allow_code_execution=settings.allow_code_execution)
    if runs_code := task_files.executes_code(entry):
        os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")  # code_eval asks for it when it is loaded
    trusted = task_files.is_trusted(entry, settings.trusted_paths)
    with calling_lm_eval(trusted=trusted), loading_data_sets():
        task = _build(name, index)
        _check_output_type(name, task)
        runs_code = runs_code or bool(getattr(task, "UNSAFE_CODE", False))
        if runs_code and not settings.allow_code_execution:
            raise TaskError(f"task {name} executes code that models write (unsafe_code), which is not allowed")
        documents = tuple(dict(document) for document in task.eval_docs)
        _set_fewshot(task, settings)
        measures = tuple(metrics.resolve(objective, task) for objective in objectives)
    return LoadedTask(name, task, trusted, documents, measures, runs_code=runs_code)


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
    known = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
    if task.OUTPUT_TYPE not in known:
        raise TaskError(f"task {name} has output_type {task.OUTPUT_TYPE!r}; supported: {', '.join(known)}")
    if task.OUTPUT_TYPE == "generate_until":
        _check_greedy(name, task.config.generation_kwargs or {})


def _check_greedy(name: str, options: Mapping[str, Any]) -> None:
    sampled = options.get("do_sample")
    if sampled or (sampled is None and float(options.get("temperature") or 0.0) > 0.0):
        raise TaskError(
            f"task {name} samples its answers (do_sample={sampled}, temperature={options.get('temperature')}); "
            "only greedy generation is supported: set do_sample: false"
        )
    if strange := sorted(set(options) - _GREEDY_OPTIONS):
        raise TaskError(f"task {name}: generation_kwargs {', '.join(strange)} are not supported")


def _set_fewshot(task: Any, settings: EvaluationSettings) -> None:
    """As `lm_eval.simple_evaluate`: a task that fixes 0 examples keeps them."""
    own = task.config.num_fewshot
    if own is None or (settings.num_fewshot is not None and own != 0):
        task.set_config("num_fewshot", settings.num_fewshot or 0)
