"""All who judge a model's answers to a plan: every answer is given once and judged by everyone it concerns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from evaluators.answers import Answers, Asked
from evaluators.evaluation import Score
from evaluators.gauges import Gauge, make_gauges
from evaluators.judging import Judge
from evaluators.plan import TaskPart
from evaluators.sandbox import SandboxedJudge
from evaluators.tasks import TaskSuite


class Verdict(NamedTuple):
    """What the answers are worth: `scores` and `tie_breaks` by objective name, and how many documents of each task ran
    out of the limits of executed code."""

    scores: Mapping[str, Score]
    tie_breaks: Mapping[str, float]
    over_limits: Mapping[str, int]


class Panel:
    """The judges of the parts of one plan."""

    def __init__(self, suite: TaskSuite, parts: Sequence[TaskPart], asked: Callable[[TaskPart], Asked]) -> None:
        """Prepare everything that does not depend on answers; ``asked`` returns the requests of a part.

        Raises:
            TaskError: an objective cannot be measured on these documents.
        """
        self._names = [objective.name for objective in suite.objectives]
        self._measures = suite.measures
        self._benches: list[tuple[TaskPart, Judge | SandboxedJudge, tuple[Gauge, ...]]] = []
        for part in parts:
            loaded = suite.parts[part.task]
            judge = SandboxedJudge(loaded, part, suite.settings) if loaded.runs_code else Judge(loaded, part)
            self._benches.append((part, judge, make_gauges(loaded, part.documents, asked(part))))

    def judge(self, answers: Answers) -> Verdict:
        """Return the score of every objective, in the suite's order, and what goes with it.

        Raises:
            MeasurementFailed: a filter, a metric or its aggregation raised, or a score is not finite.
        """
        scores: dict[str, Score] = {}
        tie_breaks: dict[str, float] = {}
        over_limits: dict[str, int] = {}
        for part, judge, gauges in self._benches:
            judged = judge.judge(likelihoods=answers.likelihoods, texts=answers.texts)
            scores |= judged.scores
            tie_breaks |= judged.tie_breaks
            if judged.over_limits:
                over_limits[part.task] = judged.over_limits
            own = answers.of(part)
            scores |= {gauge.name: gauge.score(own, scores) for gauge in gauges}
        for measure in self._measures:
            if (score := measure.score(scores)) is not None:
                scores[measure.name] = score
            if (margin := measure.tie_break(tie_breaks, scores)) is not None:
                tie_breaks[measure.name] = margin
        ordered = {name: scores[name] for name in self._names if name in scores}
        kept = {name: value for name, value in tie_breaks.items() if name in ordered}
        return Verdict(ordered, kept, over_limits)
