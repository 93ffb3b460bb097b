"""From answers to scores: the task's own filters, `process_results` and aggregation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from lm_eval.api import metrics as lm_eval_metrics

from evaluators.errors import MeasurementFailed, one_line
from evaluators.evaluation import FailureKind, Score
from evaluators.fast_metrics import Choices, ExactMatch, choices_of, exact_match_of
from evaluators.library_state import calling_lm_eval
from evaluators.loaded import LoadedTask
from evaluators.metrics import Measure, aggregation_of
from evaluators.plan import TaskPart
from evaluators.scoring import LogLikelihoods

Response: TypeAlias = Any  # text, (log-likelihood, is greedy), or the log-likelihood of a whole text
Item: TypeAlias = Any  # what process_results says of a document, and aggregations take

# a document is scored in the metric's direction also where lm-eval keeps raw material for its aggregation
_DOCUMENT_SCORES: Mapping[Callable[..., Any], Callable[[Item], float]] = {
    lm_eval_metrics.perplexity: lambda item: -float(item),
    lm_eval_metrics.weighted_perplexity: lambda item: -float(item[0]) / float(item[1]),
    lm_eval_metrics.bits_per_byte: lambda item: -float(item[0]) / float(item[1]),
    lm_eval_metrics.f1_score: lambda item: float(item[0] == item[1]),
    lm_eval_metrics.matthews_corrcoef: lambda item: float(item[0] == item[1]),
}


class Judged(NamedTuple):
    """One task's part: `scores` and `tie_breaks` by objective name, and documents whose code ran out of its limits."""

    scores: dict[str, Score]
    tie_breaks: dict[str, float]
    over_limits: int = 0


class Judge:
    """Scores the answers to one task's part of a plan. What does not depend on the answers is prepared once."""

    def __init__(self, loaded: LoadedTask, part: TaskPart) -> None:
        self._loaded, self._task, self._part = loaded, loaded.task, part
        self._documents = [loaded.documents[number] for number in part.documents]
        repeats = int(self._task.config.repeats) if loaded.samples else 1
        counts = (part.counts // repeats).tolist()
        self._asked = [document for document, count in zip(self._documents, counts, strict=True) for _ in range(count)]
        self._ends = np.cumsum(counts).tolist()
        self._filters = {ensemble.name: ensemble.filters for ensemble in self._task._filters}
        self._choices: Choices | None = None
        self._exact_match: ExactMatch | None = None
        with calling_lm_eval(trusted=loaded.trusted):
            self._choices = choices_of(self._task, self._documents, part.counts)
            if any(measure.metric == "exact_match" for measure in loaded.measures):
                self._exact_match = exact_match_of(self._task, self._documents)

    def judge(self, *, likelihoods: LogLikelihoods, texts: Sequence[str]) -> Judged:
        """Return `scores` and `tie_breaks`.

        Raises:
            MeasurementFailed: see `scores`.
        """
        return Judged(self.scores(likelihoods=likelihoods, texts=texts), self.tie_breaks(likelihoods))

    def scores(self, *, likelihoods: LogLikelihoods, texts: Sequence[str]) -> dict[str, Score]:
        """Return the score of each of the task's objectives; arguments hold the answers of the whole plan.

        Raises:
            MeasurementFailed: a filter, the metric or its aggregation raised, or its result is not finite.
        """
        mine = self._part.requests
        values, greedy, texts = likelihoods.values[mine], likelihoods.greedy[mine], texts[mine]
        found: dict[str, Score] = {}
        with calling_lm_eval(trusted=self._loaded.trusted):
            if (choices := self._choices) is not None and self._is_unfiltered():
                for measure in self._loaded.measures:
                    if measure.metric in choices.lengths:
                        found[measure.name] = self._score(measure, choices.accuracy(measure.metric, values))
            left = [measure for measure in self._loaded.measures if measure.name not in found]
            for name in dict.fromkeys(measure.filter for measure in left):
                answers = list(texts) if self._part.generates else self._likelihoods(values, greedy)
                filtered = self._filtered(name, answers)
                for measure, items in self._items([m for m in left if m.filter == name], filtered):
                    found[measure.name] = self._score(measure, items)
        return found

    def tie_breaks(self, likelihoods: LogLikelihoods) -> dict[str, float]:
        """Return the mean margin of the right choice for each objective of a multiple-choice task."""
        if self._choices is None or not self._choices.has_margins:
            return {}
        margin = self._choices.margin(likelihoods.values[self._part.requests])
        return {measure.name: margin for measure in self._loaded.measures}

    def _is_unfiltered(self) -> bool:
        return not self._task.config.filter_list

    def _likelihoods(self, values: Any, greedy: Any) -> list[Response]:
        if self._loaded.kind == "loglikelihood_rolling":
            rolling: list[Response] = values.tolist()
            return rolling
        return list(zip(values.tolist(), greedy.tolist(), strict=True))

    def _filtered(self, name: str, answers: Sequence[Response]) -> list[Response]:
        each = len(answers) // len(self._asked)  # one, or where answers are sampled all repeats
        copies = int(self._task.config.repeats) // each
        responses: Any = [list(answers[i : i + each]) * copies for i in range(0, len(answers), each)]
        try:
            for make in self._filters[name]:
                responses = make().apply(responses, self._asked)
            return list(responses)
        except Exception as error:
            raise self._failed(f"filter {name}", error) from error

    def _items(self, measures: Sequence[Measure], filtered: Sequence[Response]) -> list[tuple[Measure, Sequence[Item]]]:
        """What each of ``measures`` (of one filter) says of each document."""
        fast = [measure for measure in measures if measure.metric == "exact_match"]
        slow = [measure for measure in measures if measure.metric != "exact_match"]
        if self._exact_match is None or not all(isinstance(answer, str) for answer in filtered):
            fast, slow = [], list(measures)
        items: list[tuple[Measure, Sequence[Item]]] = []
        if fast and self._exact_match is not None:
            items += [(measure, self._exact_match(filtered)) for measure in fast]
        if slow:
            results = self._process_results(filtered)
            items += [(measure, self._of_metric(measure, results)) for measure in slow]
        return items

    def _process_results(self, filtered: Sequence[Response]) -> list[Mapping[str, Item]]:
        results = []
        first = 0
        for number, document, end in zip(self._part.documents, self._documents, self._ends, strict=True):
            try:
                results.append(self._task.process_results(document, list(filtered[first:end])))
            except Exception as error:
                raise self._failed(f"document {number}", error) from error
            first = end
        return results

    def _of_metric(self, measure: Measure, results: Sequence[Mapping[str, Item]]) -> list[Item]:
        for number, result in zip(self._part.documents, results, strict=True):
            if measure.metric not in result:
                raise MeasurementFailed(
                    FailureKind.METRIC_ERROR,
                    f"task {self._loaded.name}, document {number}: no value for metric {measure.metric}, "
                    f"only for {', '.join(result) or 'none'}",
                )
        return [result[measure.metric] for result in results]

    def _score(self, measure: Measure, items: Sequence[Item]) -> Score:
        aggregation = aggregation_of(self._task, measure.metric)
        try:
            value = float(aggregation(items))
            score_of = _DOCUMENT_SCORES.get(aggregation, partial(_alone, aggregation))
            documents = np.array([score_of(item) for item in items], dtype=np.float64)
        except OverflowError:
            value, documents = math.inf, np.array([])
        except Exception as error:
            raise self._failed(f"aggregation of {measure.metric}", error) from error
        if not math.isfinite(value) or not np.isfinite(documents).all():
            raise MeasurementFailed(FailureKind.NON_FINITE, f"score of {measure.name} is not finite ({value})")
        standard_error = None
        if aggregation is lm_eval_metrics.mean and len(items) > 1:
            standard_error = float(lm_eval_metrics.mean_stderr(items))
        return Score(value, standard_error, documents)

    def _failed(self, where: str, error: Exception) -> MeasurementFailed:
        text = one_line(error)
        return MeasurementFailed(
            FailureKind.METRIC_ERROR, f"task {self._loaded.name}, {where}: {type(error).__name__}: {text}"
        )


def _alone(aggregation: Callable[[Sequence[Item]], float], item: Item) -> float:
    """What a document scores: the number that the metric gave it, else what its aggregation makes of it alone."""
    return float(item if isinstance(item, int | float | np.number | np.bool_) else aggregation([item]))
