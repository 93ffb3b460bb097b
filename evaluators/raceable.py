"""Which metrics can race: those whose score is the mean of their documents' scores."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval.api import metrics as lm_eval_metrics

from evaluators.errors import TaskError
from evaluators.objective import Objective
from evaluators.objective_kinds import AnyObjective
from evaluators.tasks import TaskSuite


def refuse_unraceable(suite: TaskSuite, objectives: Sequence[AnyObjective]) -> None:
    """Refuse objectives of which some documents say nothing about all.

    Raises:
        TaskError: an objective is no metric of a task, or its aggregation no mean over documents; it is named.
    """
    for objective in objectives:
        if not isinstance(objective, Objective) or objective.task not in suite.loaded:
            raise TaskError(
                f"evaluation.racing: expected objectives that are metrics of single tasks, got {objective.name}; "
                "remove racing, or choose another objective"
            )
    for task in suite.loaded.values():
        for measure in task.measures:
            aggregation = task.task.aggregation()[measure.metric]
            if aggregation is not lm_eval_metrics.mean:
                name = getattr(aggregation, "__name__", str(aggregation))
                raise TaskError(
                    f"evaluation.racing: objective {measure.name} is aggregated by {name}, not as a mean over "
                    "documents, so some documents cannot stand for all; remove racing, or choose another metric"
                )
