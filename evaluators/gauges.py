"""What the kinds of objectives other than lm-eval metrics make of a model's answers, document by document."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, assert_never

import numpy as np
import numpy.typing as npt

from evaluators.answers import Answers, Asked
from evaluators.errors import MeasurementFailed, TaskError, one_line
from evaluators.evaluation import FailureKind, Floats, Score
from evaluators.languages import LanguageDetector
from evaluators.library_state import calling_lm_eval
from evaluators.loaded import LoadedTask
from evaluators.objective_checks import plain_choices
from evaluators.objective_kinds import CostPerAnswer, Language, Length, Likelihood, ObjectivePlugIn, Perplexity


class Gauge(Protocol):
    """One objective on one part of a plan. What does not depend on the answers was prepared when it was made."""

    @property
    def name(self) -> str:
        """The objective's name."""

    def score(self, answers: Answers, found: Mapping[str, Score]) -> Score:
        """Return the score for the ``answers`` to the part; ``found`` holds the task's metrics by objective name.

        Raises:
            MeasurementFailed: the score is not finite.
        """


def make_gauges(loaded: LoadedTask, documents: Sequence[int], asked: Asked) -> tuple[Gauge, ...]:
    """Return the gauges of the objectives of ``loaded`` on ``documents``, whose requests are ``asked``.

    Raises:
        TaskError: the right choices of a document are not known, or tokens cannot be counted.
    """
    return tuple(_make(objective, loaded, documents, asked) for objective in loaded.gauged)


def _make(objective: Any, loaded: LoadedTask, documents: Sequence[int], asked: Asked) -> Gauge:
    kind: Likelihood | Perplexity | Length | Language | CostPerAnswer | ObjectivePlugIn = objective
    match kind:
        case Likelihood():
            right = _right(loaded, documents, asked)
            units = _units(kind.per, asked, kind.name)
            among = kind.scale == "probability" and loaded.kind == "multiple_choice"
            return _LikelihoodGauge(kind.name, right, _firsts(asked), units, "share" if among else kind.scale)
        case Perplexity():
            return _PerplexityGauge(kind.name, _firsts(asked), _units(kind.per, asked, kind.name))
        case Length():
            return _TokensGauge(kind.name, _firsts(asked), None)
        case Language():
            counted = kind.counted
            return _LanguageGauge(
                kind.name, _firsts(asked), LanguageDetector(kind.language), counted.name if counted else None
            )
        case CostPerAnswer(unit="tokens"):
            return _TokensGauge(kind.name, _firsts(asked), _sizes(asked, kind.name).astype(np.float64))
        case CostPerAnswer():
            return _SecondsGauge(kind.name, _firsts(asked))
        case ObjectivePlugIn():
            return _PlugInGauge(kind.name, _firsts(asked), kind, [loaded.documents[number] for number in documents])
    assert_never(kind)


@dataclass(frozen=True)
class _LikelihoodGauge:
    """The likeliest right answer of each document."""

    name: str
    right: npt.NDArray[np.bool_]
    firsts: npt.NDArray[np.int64]
    units: Floats
    scale: Literal["nats", "probability", "share"]  # share: of the probability of all choices

    def score(self, answers: Answers, found: Mapping[str, Score]) -> Score:
        values = answers.likelihoods.values / self.units
        likeliest = np.maximum.reduceat(np.where(self.right, values, -np.inf), self.firsts)
        if self.scale == "share":
            likeliest -= np.logaddexp.reduceat(values, self.firsts)
        return Score.mean_of(likeliest if self.scale == "nats" else np.exp(likeliest))


@dataclass(frozen=True)
class _PerplexityGauge:
    """Perplexity of all text together; documents are scored by their own mean loss in nats per unit."""

    name: str
    firsts: npt.NDArray[np.int64]
    units: Floats

    def score(self, answers: Answers, found: Mapping[str, Score]) -> Score:
        losses = np.add.reduceat(-answers.likelihoods.values, self.firsts)
        units = np.add.reduceat(self.units, self.firsts)
        rate = float(losses.sum() / units.sum())
        if rate > math.log(np.finfo(np.float64).max):
            raise MeasurementFailed(FailureKind.NON_FINITE, f"score of {self.name} is not finite (exp of {rate:.0f})")
        value = math.exp(rate)
        return Score(value, _ratio_error(losses, units, rate, value), losses / units)


def _ratio_error(losses: Floats, units: Floats, rate: float, value: float) -> float | None:
    """Standard error of exp(sum of losses / sum of units) by the delta method."""
    count = len(losses)
    if count < 2:
        return None
    spread = float(np.square(losses - rate * units).sum()) / (count - 1)
    return value * math.sqrt(spread / count) / float(units.mean())


@dataclass(frozen=True)
class _TokensGauge:
    """Generated tokens of each document, and those of its prompts if they count."""

    name: str
    firsts: npt.NDArray[np.int64]
    prompts: Floats | None

    def score(self, answers: Answers, found: Mapping[str, Score]) -> Score:
        if answers.tokens is None:
            raise TaskError(f"objective {self.name} counts tokens, which needs the model's tokenizer")
        tokens = answers.tokens.astype(np.float64)
        return Score.mean_of(_means(tokens if self.prompts is None else tokens + self.prompts, self.firsts))


@dataclass(frozen=True)
class _SecondsGauge:
    name: str
    firsts: npt.NDArray[np.int64]

    def score(self, answers: Answers, found: Mapping[str, Score]) -> Score:
        if answers.seconds is None:
            raise TaskError(f"objective {self.name} cannot be measured here: the time of single answers is not known")
        return Score.mean_of(_means(answers.seconds, self.firsts))


@dataclass(frozen=True)
class _LanguageGauge:
    """1 where the whole response is in the language, times the metric's score of the document."""

    name: str
    firsts: npt.NDArray[np.int64]
    is_spoken: LanguageDetector
    counted: str | None

    def score(self, answers: Answers, found: Mapping[str, Score]) -> Score:
        spoken = np.array([float(self.is_spoken(text)) for text in answers.texts])
        documents = np.minimum.reduceat(spoken, self.firsts)
        return Score.mean_of(documents if self.counted is None else documents * found[self.counted].documents)


@dataclass(frozen=True)
class _PlugInGauge:
    """What a class of another package says of the responses."""

    name: str
    firsts: npt.NDArray[np.int64]
    objective: ObjectivePlugIn
    documents: Sequence[Mapping[str, Any]]

    def score(self, answers: Answers, found: Mapping[str, Score]) -> Score:
        stops = np.append(self.firsts[1:], len(answers.texts))
        pairs = zip(self.firsts.tolist(), stops.tolist(), strict=True)
        try:
            judged = self.objective.judge(self.documents, [tuple(answers.texts[a:b]) for a, b in pairs])
            scores = np.array(judged, dtype=np.float64)
        except Exception as error:  # whatever it raises
            text = f"{type(error).__name__}: {one_line(error)}"
            raise MeasurementFailed(FailureKind.METRIC_ERROR, f"objective {self.name}: {text}") from error
        if scores.shape != self.firsts.shape:
            expected = f"expected a score for each of {len(self.firsts)} documents, got shape {list(scores.shape)}"
            raise MeasurementFailed(FailureKind.METRIC_ERROR, f"objective {self.name}: {expected}")
        if not np.isfinite(scores).all():
            raise MeasurementFailed(FailureKind.NON_FINITE, f"objective {self.name}: a score is not finite")
        return Score.mean_of(scores)


def _means(values: Floats, firsts: npt.NDArray[np.int64]) -> Floats:
    """The mean over the responses of each document."""
    counts = np.diff(np.append(firsts, len(values)))
    return np.asarray(np.add.reduceat(values, firsts) / counts)


def _right(loaded: LoadedTask, documents: Sequence[int], asked: Asked) -> npt.NDArray[np.bool_]:
    """(requests,) whether a request asks for a right answer."""
    if loaded.kind != "multiple_choice":
        return np.ones(len(asked.instances), dtype=bool)
    with calling_lm_eval(trusted=loaded.trusted):
        choices = plain_choices(loaded, [loaded.documents[number] for number in documents], asked.counts)
    if not choices.right.any(1).all():
        number = documents[int(choices.right.any(1).argmin())]
        raise TaskError(f"task {loaded.name}, document {number}: none of the choices is right")
    right: npt.NDArray[np.bool_] = choices.right[choices.present]
    return right


def _firsts(asked: Asked) -> npt.NDArray[np.int64]:
    """(documents,) the first request of each."""
    return np.concatenate([[0], np.cumsum(asked.counts)[:-1]])


def _sizes(asked: Asked, name: str) -> npt.NDArray[np.int64]:
    if asked.sizes is None:
        raise TaskError(f"objective {name} counts tokens, which needs the model's tokenizer")
    return asked.sizes


_UNITS: Mapping[str, Callable[[str], int]] = {
    "answer": lambda _: 1,
    "byte": lambda text: len(text.encode("utf-8")),
    "word": lambda text: len(text.split()),
}


def _units(per: str, asked: Asked, name: str) -> Floats:
    """(requests,) what the log-likelihood of a request is divided by, at least 1."""
    if per == "token":
        return np.asarray(np.maximum(_sizes(asked, name), 1), dtype=np.float64)
    # the last argument is what is scored: an answer after its context, or a whole text
    return np.array([max(1, _UNITS[per](instance.args[-1])) for instance in asked.instances], dtype=np.float64)
