"""Which of a task's metrics and filters an objective means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.api.metrics import mean

from evaluators.errors import TaskError
from evaluators.evaluation import Score
from evaluators.objective import Objective


@dataclass(frozen=True)
class Measure:
    """An objective with the task's own names for its metric and its filter."""

    objective: Objective
    metric: str
    filter: str

    @property
    def name(self) -> str:
        """The objective's name."""
        return self.objective.name

    def score(self, scores: Mapping[str, Score]) -> Score | None:
        """Return its own of ``scores`` by name, None without one."""
        return scores.get(self.name)

    def tie_break(self, tie_breaks: Mapping[str, float], scores: Mapping[str, Score]) -> float | None:
        """Return its own of ``tie_breaks`` by name, None without one."""
        return tie_breaks.get(self.name)


def filter_names(task: Any) -> list[str]:
    """Return the names of the task's filters in order; without a filter list lm-eval has one, called `none`."""
    listed = task.config.filter_list
    return [str(entry["name"]) for entry in listed] if listed else ["none"]


def metric_names(task: Any) -> list[str]:
    """Return the names of the task's metrics; `pass_at_k` of tasks that execute code is reported as `pass@1`, ..."""
    names: list[str] = []
    for name in task.aggregation():
        counts = getattr(task, "_metric_fn_kwargs", {}).get(name, {}).get("k") if name == "pass_at_k" else None
        names += [name] if counts is None else [f"pass@{k}" for k in (counts if isinstance(counts, list) else [counts])]
    return names


def aggregation_of(task: Any, metric: str) -> Callable[..., Any]:
    """Return how scores of documents become one; as in lm-eval the mean, where the task does not say."""
    found: Callable[..., Any] = task.aggregation().get(metric, mean)
    return found


def resolve(objective: Objective, task: Any) -> Measure:
    """Return the measure that ``objective`` asks of ``task``.

    Raises:
        TaskError: the task has no such metric or filter; it has several filters and none is named; it measures the
            metric in the other direction; or the metric's function was not found.
    """
    metric, _, wanted = objective.metric.partition(",")
    metrics, filters = metric_names(task), filter_names(task)
    choices = ", ".join(f"{m},{f}" if len(filters) > 1 else m for m in metrics for f in filters)
    if metric not in metrics or (wanted and wanted not in filters):
        raise TaskError(f"task {objective.task} has no metric {objective.metric!r}; it has: {choices}")
    if not wanted and len(filters) > 1:
        raise TaskError(f"metric {metric!r} of task {objective.task} needs a filter: {choices}")
    _check_function(task, metric)
    _check_direction(objective, task, metric)
    return Measure(objective, metric, wanted or filters[0])


def first_objective(name: str, task: Any) -> Objective:
    """Return the first metric of the task ``name`` under its first filter, in the task's own direction.

    Raises:
        TaskError: the task has no metric.
    """
    listed, filters = metric_names(task), filter_names(task)
    if not listed:
        raise TaskError(f"task {name} has no metric; give it a metric_list")
    metric = f"{listed[0]},{filters[0]}" if len(filters) > 1 else listed[0]
    higher = task.higher_is_better().get(listed[0], True)
    return Objective(task=name, metric=metric, direction="maximize" if higher else "minimize")


def is_mean(task: Any, metric: str) -> bool:
    """Whether the score of ``metric`` is the mean over the documents."""
    return aggregation_of(task, metric) is mean


def _check_function(task: Any, metric: str) -> None:
    functions = getattr(task, "_metric_fn_list", {})
    if metric in functions and functions[metric] is None and task.config.process_results is None:
        raise TaskError(f"metric {metric!r} of task {task.config.task} is neither lm-eval's nor could it be loaded")


def _check_direction(objective: Objective, task: Any, metric: str) -> None:
    higher = task.higher_is_better().get(metric)
    if higher is not None and bool(higher) != (objective.direction == "maximize"):
        right = "maximize" if higher else "minimize"
        raise TaskError(
            f"objective {objective.name} has direction {objective.direction!r}, but the task says that "
            f"{'higher' if higher else 'lower'} {metric} is better; write direction: {right}"
        )
