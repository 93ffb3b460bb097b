"""Reference answers of tasks that generate, as requests to be scored: a likelihood without generating anything."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance

from evaluators.fast_metrics import targets_of
from evaluators.loaded import LoadedTask
from evaluators.objective_kinds import Likelihood

_SUFFIX = " (reference answers)"


def parts_of(loaded: LoadedTask) -> dict[str, LoadedTask]:
    """Return what is asked of the documents of a task, by name: its own requests, its reference answers, or both."""
    if loaded.kind != "generate_until":
        return {loaded.name: loaded}
    likelihoods = tuple(objective for objective in loaded.gauged if isinstance(objective, Likelihood))
    others = tuple(objective for objective in loaded.gauged if not isinstance(objective, Likelihood))
    parts = {}
    if loaded.measures or others or not likelihoods:
        parts[loaded.name] = replace(loaded, gauged=others)
    if likelihoods:
        name = loaded.name + _SUFFIX
        parts[name] = replace(loaded, name=name, task=_scoring_references(loaded.task), measures=(), gauged=likelihoods)
    return parts


def task_of(part: str) -> str:
    """Return the name of the task that a part belongs to."""
    return part.removesuffix(_SUFFIX)


def _scoring_references(task: Any) -> Any:
    """Return a copy of an lm-eval task whose requests are the log-likelihoods of its reference answers."""
    scoring = copy.copy(task)
    scoring.OUTPUT_TYPE = "loglikelihood"
    scoring.construct_requests = partial(_requests, scoring)
    return scoring


def _requests(
    task: Any,
    doc: Mapping[str, Any],
    ctx: str,
    *,
    apply_chat_template: bool = False,
    chat_template: Any = None,
    **options: Any,
) -> list[Instance]:
    # as lm-eval joins question and answer: with a chat template the turn's header already parts them
    prefix = task.config.gen_prefix
    parted = apply_chat_template and not (prefix and not prefix[-1].isspace())
    delimiter = "" if parted else task.config.target_delimiter
    return [
        Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, f"{delimiter}{target}"), idx=i, **options)
        for i, target in enumerate(dict.fromkeys(map(str, targets_of(task, doc))))
    ]
