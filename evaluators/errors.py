"""The exceptions of the evaluators.

- `TaskError`: the user's mistake in a task, a metric or a split; one clear line.
- `MeasurementFailed`: one model cannot be measured; the evaluator turns it into a `Failure`, callers never see it.
"""

from __future__ import annotations

from evaluators.evaluation import FailureKind


def one_line(error: BaseException) -> str:
    """Return the text of ``error`` on one line; its type where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


class TaskError(ValueError):
    """A task, metric or split cannot be used as asked. The text is one line: what, where, what would be right."""


class MeasurementFailed(Exception):
    """Measuring a model came to nothing, for the reason in `kind`."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class OverLimits(MeasurementFailed):
    """The code that a model wrote for one document ran out of its limits, or ended the process that judged it."""
