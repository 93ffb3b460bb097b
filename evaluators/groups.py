"""Groups of tasks: which tasks are in one, and lm-eval's aggregate of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr, unweighted_mean_stderr

from evaluators import metrics
from evaluators.errors import TaskError
from evaluators.evaluation import Score
from evaluators.metrics import Measure
from evaluators.objective import Objective


@dataclass(frozen=True)
class GroupMeasure:
    """An objective that names a group.

    Attributes:
        parts: the same metric of the group's tasks, in lm-eval's order.
        weight_by_size: whether a task counts by its number of documents, or every task the same.
    """

    objective: Objective
    parts: tuple[Measure, ...]
    weight_by_size: bool

    @property
    def name(self) -> str:
        """The objective's name."""
        return self.objective.name

    def score(self, scores: Mapping[str, Score]) -> Score | None:
        """Return the aggregate of the tasks' ``scores`` (by name), None unless every task of the group has one.

        Its standard error is pooled as lm-eval does, None if a task has none. Its documents are those of its tasks
        one after another. Where tasks count the same but have different numbers of documents, a document of a smaller
        task counts more: scores are scaled so that the mean over all documents is the mean over tasks.
        """
        if any(part.name not in scores for part in self.parts):
            return None
        found = [scores[part.name] for part in self.parts]
        sizes = [len(score.documents) for score in found]
        value = aggregate_subtask_metrics([score.value for score in found], sizes, self.weight_by_size)
        shares = self._shares(sizes)
        documents = np.concatenate([share * score.documents for share, score in zip(shares, found, strict=True)])
        return Score(float(value), self._standard_error(found, sizes), documents)

    def tie_break(self, tie_breaks: Mapping[str, float], scores: Mapping[str, Score]) -> float | None:
        """Return the tasks' ``tie_breaks`` added up as their scores are, None unless every task has one."""
        if any(part.name not in tie_breaks for part in self.parts):
            return None
        sizes = [len(scores[part.name].documents) for part in self.parts]
        margins = [tie_breaks[part.name] for part in self.parts]
        return float(aggregate_subtask_metrics(margins, sizes, self.weight_by_size))

    def _shares(self, sizes: Sequence[int]) -> list[float]:
        """What a document of each task counts, 1 on average."""
        if self.weight_by_size:
            return [1.0] * len(sizes)
        return [sum(sizes) / (len(sizes) * size) for size in sizes]

    def _standard_error(self, scores: Sequence[Score], sizes: list[int]) -> float | None:
        errors = [score.standard_error for score in scores if score.standard_error is not None]
        if len(errors) < len(scores):
            return None
        return float(pooled_sample_stderr(errors, sizes) if self.weight_by_size else unweighted_mean_stderr(errors))


def resolve(objective: Objective, group: Group) -> GroupMeasure:
    """Return the measure that ``objective`` asks of ``group``. Tasks without the metric are left out, as in lm-eval.

    Raises:
        TaskError: lm-eval has no aggregate for the group; the group has no such metric or filter; it has several
            filters and none is named; or a task measures the metric in the other direction.
    """
    weights = _weights(group)
    metric, _, wanted = objective.metric.partition(",")
    keys = [key for key in weights if key == (metric, wanted or key[1])]
    if len(keys) == 1:
        ((_, chosen),) = keys
        tasks = [task for task in group.get_all_tasks() if _has(task, metric, chosen)]
        parts = tuple(metrics.resolve(_part(objective, task, f"{metric},{chosen}"), task) for task in tasks)
        return GroupMeasure(objective, parts, weights[keys[0]])
    choices = ", ".join(",".join(key) for key in weights)
    if keys:
        raise TaskError(f"metric {metric!r} of group {objective.task} needs a filter: {choices}")
    raise TaskError(f"group {objective.task} has no metric {objective.metric!r}; it has: {choices}")


def first_objective(group: Group) -> Objective:
    """Return the first metric of ``group`` under its first filter, in its tasks' direction.

    Raises:
        TaskError: lm-eval has no aggregate for the group.
    """
    weights = _weights(group)
    metric, chosen = next(iter(weights))
    several = sum(key[0] == metric for key in weights) > 1
    task = next(task for task in group.get_all_tasks() if _has(task, metric, chosen))
    higher = task.higher_is_better().get(metric, True)
    name = f"{metric},{chosen}" if several else metric
    return Objective(task=group.name, metric=name, direction="maximize" if higher else "minimize")


def task_names(group: Group) -> list[str]:
    """Return the names of all tasks of ``group``, each once, in order."""
    return list(dict.fromkeys(task.task_name for task in group.get_all_tasks()))


def _weights(group: Group) -> dict[tuple[str, str], bool]:
    """Whether each (metric, filter) that lm-eval aggregates is weighted by size; the last entry of a metric decides."""
    names = ", ".join(task_names(group)) or "none"
    if not group.has_aggregation:
        raise TaskError(
            f"group {group.name} has no aggregate_metric_list, so lm-eval has no score for it; "
            f"name its tasks one by one ({names}), or a group of your own that has one"
        )
    weights: dict[tuple[str, str], bool] = {}
    for entry in group.aggregate_metric_list or ():
        filters = entry.filter_list
        if filters is None:
            filters = sorted({f for task in group.get_all_tasks() for f in metrics.filter_names(task)})
        for name in filters:
            if any(_has(task, entry.metric, name) for task in group.get_all_tasks()):
                weights[entry.metric, name] = entry.weight_by_size
    if not weights:
        listed = ", ".join(entry.metric for entry in group.aggregate_metric_list or ())
        raise TaskError(f"group {group.name} aggregates {listed}, which none of its tasks has (its tasks: {names})")
    return weights


def _has(task: Any, metric: str, filter_name: str) -> bool:
    return metric in task.aggregation() and filter_name in metrics.filter_names(task)


def _part(objective: Objective, task: Any, metric: str) -> Objective:
    return objective.model_copy(update={"task": str(task.task_name), "metric": metric})
