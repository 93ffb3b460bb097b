"""Smooth scores: the probability that a model gives to the right answer, in place of whether it gives that answer.

Two merges that differ a little answer most documents alike, so of their exact scores only the few documents count that
one of them has just lost or won; probabilities differ on all documents. On as many documents they order such merges
better, and nothing is generated. Their level is another one, so they guide an optimizer and are no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from evaluators.errors import TaskError
from evaluators.evaluation import Documents, Evaluation, Outcome
from evaluators.objective import MinibatchSettings, Objective
from evaluators.objective_kinds import Likelihood
from evaluators.protocol import Evaluator


def stand_ins(objectives: Sequence[Objective], settings: MinibatchSettings) -> dict[str, Likelihood]:
    """Return by objective name the probability that stands for it.

    Raises:
        TaskError: less of an objective is better, so it is no share of right answers.
    """
    per: Literal["token", "answer"] = "token" if settings.measure == "probability_per_token" else "answer"
    found = {}
    for objective in objectives:
        if objective.direction != "maximize":
            raise TaskError(
                f"evaluation.minibatches: less of objective {objective.name} is better, so the probability of right "
                "answers cannot stand for it; use measure: metric"
            )
        found[objective.name] = Likelihood(kind="likelihood", task=objective.task, per=per, scale="probability")
    return found


class SmoothEvaluator:
    """Gives objectives the scores of what stands for them."""

    def __init__(self, evaluator: Evaluator, names: dict[str, str]) -> None:
        """``evaluator`` measures what stands for the objectives; ``names``: of that, by objective name."""
        self._evaluator, self._names = evaluator, names

    def evaluate(self, model: Any, documents: Documents) -> Outcome:
        """Return the smooth scores of ``model`` under the objectives' names, or why there are none.

        Raises:
            ValueError: as the evaluator.
        """
        outcome = self._evaluator.evaluate(model, documents)
        if not isinstance(outcome, Evaluation):
            return outcome
        return replace(outcome, scores={name: outcome.scores[other] for name, other in self._names.items()})
