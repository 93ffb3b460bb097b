"""Which metrics some documents can stand for: those whose score is the mean of their documents' scores."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval.api import metrics as lm_eval_metrics

from evaluators.errors import TaskError
from evaluators.objective import Objective
from evaluators.objective_kinds import AnyObjective
from evaluators.tasks import TaskSuite


def refuse_unraceable(suite: TaskSuite, objectives: Sequence[AnyObjective], *, key: str = "racing") -> None:
    """Refuse objectives of which some documents say nothing about all; ``key`` of `evaluation` is what needs it.

    Raises:
        TaskError: an objective is no metric of a task, or its aggregation no mean over documents; it is named.
    """
    for objective in objectives:
        if not isinstance(objective, Objective) or objective.task not in suite.loaded:
            raise TaskError(
                f"evaluation.{key}: expected objectives that are metrics of single tasks, got {objective.name}; "
                f"remove {key}, or choose another objective"
            )
    for task in suite.loaded.values():
        for measure in task.measures:
            aggregation = task.task.aggregation()[measure.metric]
            if aggregation is not lm_eval_metrics.mean:
                name = getattr(aggregation, "__name__", str(aggregation))
                raise TaskError(
                    f"evaluation.{key}: objective {measure.name} is aggregated by {name}, not as a mean over "
                    f"documents, so some documents cannot stand for all; remove {key}, or choose another metric"
                )
