"""What a measurement returns: scores of every document, or a failure with a kind. Never NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Documents:
    """Documents of each task, by their number in the task. A value: equal ids give an equal digest."""

    ids: Mapping[str, tuple[int, ...]]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the tasks and their document ids."""
        text = ";".join(f"{task}:{','.join(map(str, ids))}" for task, ids in sorted(self.ids.items()))
        return sha256(text.encode()).hexdigest()

    @property
    def count(self) -> int:
        """Number of documents over all tasks."""
        return sum(map(len, self.ids.values()))


@dataclass(frozen=True)
class Score:
    """One objective on some documents, in the metric's own direction.

    Attributes:
        value: what lm-eval's aggregation makes of the documents (usually their mean); finite.
        standard_error: of `value`; None where the aggregation has no closed form.
        documents: (n,) float64, one score per document in the order of the document ids, in the direction of the
            metric; empty for an objective without documents, which is known exactly. Where lm-eval keeps raw
            material for its aggregation: negative log-likelihood in nats (per word or byte) for perplexities, 1 or 0
            for the right choice in f1 and mcc, else what the aggregation makes of the document alone (its own BLEU,
            its own Brier score).
    """

    value: float
    standard_error: float | None
    documents: Floats

    @classmethod
    def mean_of(cls, documents: Floats) -> Score:
        """Return the mean of (n,) scores with its standard error, to the bit as lm-eval computes both."""
        values = documents.tolist()
        mean, error = sum(values) / len(values), None
        if len(values) > 1:
            squares = sum((value - mean) ** 2 for value in values)
            error = math.sqrt(squares / (len(values) - 1)) / math.sqrt(len(values))
        return cls(mean, error, documents)


@dataclass(frozen=True, slots=True)
class Cost:
    """What an evaluation took. Seconds are wall time; `forward_seconds` is the part inside the model."""

    seconds: float = 0.0
    merge_seconds: float = 0.0
    forward_seconds: float = 0.0
    cpu_seconds: float = 0.0
    forward_cpu_seconds: float = 0.0
    tokens: int = 0
    documents: int = 0

    def __add__(self, other: Cost) -> Cost:
        """What both took together."""
        return Cost(**{part.name: getattr(self, part.name) + getattr(other, part.name) for part in fields(Cost)})


@dataclass(frozen=True)
class Stop:
    """Why a candidate saw only some of the documents: a race that ended early, or a minibatch.

    Attributes:
        documents: number of documents seen, over all tasks, and `of` how many.
        rival: number of the candidate that could hardly be reached, and the `chance` to; None without a race.
        par: numbers of the candidates whose mean was par.
        minibatch: number of the minibatch; None for a race.
    """

    documents: int
    of: int
    rival: int | None
    chance: float | None
    par: tuple[int, ...]
    minibatch: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """A finished measurement, or with `stopped` what is estimated from some of the documents.

    Attributes:
        scores: one per objective name. With `stopped` values and standard errors are estimates for all documents,
            while `Score.documents` holds the documents that were seen.
        tie_breaks: a smooth stand-in per objective name where there is one (mean margin of the right choice in
            nats per document); used inside optimizers only, never reported as a score.
        truncated: documents per task that lost the beginning of a prompt to the model's context; tasks without are
            left out.
        over_limits: documents per task whose code ran out of its limits and therefore scored 0; tasks without are
            left out.
    """

    documents_digest: str
    scores: Mapping[str, Score]
    tie_breaks: Mapping[str, float] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    truncated: Mapping[str, int] = field(default_factory=dict)
    over_limits: Mapping[str, int] = field(default_factory=dict)
    stopped: Stop | None = None

    def __post_init__(self) -> None:
        for name, score in self.scores.items():
            if not math.isfinite(score.value) or not np.isfinite(score.documents).all():
                raise ValueError(f"score of {name} is not finite: a failure must be reported as Failure")


class FailureKind(StrEnum):
    """Why a candidate has no evaluation."""

    NON_FINITE = "non_finite"  # logits or scores that are NaN or infinite
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    METRIC_ERROR = "metric_error"  # a filter or metric of the task raised
    MERGE_ERROR = "merge_error"  # the recipe could not be applied
    WORKER_LOST = "worker_lost"  # the process or its machine died
    EXCEPTION = "exception"  # anything else


@dataclass(frozen=True)
class Failure:
    """A measurement that did not come about."""

    kind: FailureKind
    message: str
    cost: Cost = field(default_factory=Cost)


Outcome: TypeAlias = Evaluation | Failure
