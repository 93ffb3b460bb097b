"""What an evaluator is: it knows models and documents, not recipes or machines."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from evaluators.evaluation import Documents, Outcome


@runtime_checkable
class Evaluator(Protocol):
    """Measures models on documents of a fixed suite of tasks."""

    def evaluate(self, model: Any, documents: Documents) -> Outcome:
        """Return the scores of ``model`` on ``documents``, or a `Failure` that says why there are none.

        Raises:
            ValueError: ``documents`` names a task or a document that the evaluator does not have; never for what
                the model does.
        """
