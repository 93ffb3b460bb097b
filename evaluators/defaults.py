"""Which metric of a task is meant when nobody names one."""

from __future__ import annotations

from evaluators import metrics
from evaluators.errors import TaskError
from evaluators.objective import EvaluationSettings, Objective
from evaluators.tasks import load_task


def default_objective(task: str, settings: EvaluationSettings) -> Objective:
    """Return the objective of the first metric (and the first filter) that ``task`` lists, in the task's direction.

    Raises:
        TaskError: the task is unknown or cannot be loaded, or lists no metric.
    """
    loaded = load_task(task, settings).task
    names, filters = list(loaded.aggregation()), metrics.filter_names(loaded)
    if not names:
        raise TaskError(f"task {task} lists no metric; name one as {task}/metric")
    higher = loaded.higher_is_better().get(names[0], True)
    metric = f"{names[0]},{filters[0]}" if len(filters) > 1 else names[0]
    return Objective(task=task, metric=metric, direction="maximize" if higher else "minimize")
