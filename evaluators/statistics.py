"""Intervals for scores and for differences of scores, and how objectives add up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from evaluators.evaluation import Floats, Score

_RESAMPLED_AT_ONCE = 1 << 22  # documents drawn in one array: 32 MiB


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A value and its standard error; None where it is not known."""

    value: float
    standard_error: float | None


def wilson_interval(successes: float, count: int, *, confidence: float = 0.95) -> Interval:
    """Return Wilson's interval for a rate of ``successes`` in ``count`` trials; within [0, 1], also at the ends.

    Raises:
        ValueError: ``count`` is not positive, ``successes`` is not in [0, ``count``], or ``confidence`` not in (0, 1).
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"successes must be in [0, count] and count at least 1, got {successes} of {count}")
    z = _normal_quantile(confidence)
    rate = successes / count
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2)
    # at 0 and at `count` the end is exact; rounding would leave it a hair inside or outside
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == count else min(1.0, middle + half)
    return Interval(low, high)


def normal_interval(value: float, standard_error: float, *, confidence: float = 0.95) -> Interval:
    """Return ``value`` plus and minus the normal quantile times ``standard_error``.

    Raises:
        ValueError: ``standard_error`` is negative or ``confidence`` not in (0, 1).
    """
    if standard_error < 0:
        raise ValueError(f"standard_error must not be negative, got {standard_error}")
    half = _normal_quantile(confidence) * standard_error
    return Interval(value - half, value + half)


def mean_interval(values: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return Student's interval for the mean of ``values`` (n,), n at least 2.

    Raises:
        ValueError: fewer than 2 values, or ``confidence`` not in (0, 1).
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # loading it takes a fifth of a second

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"values must be (n,) with n at least 2, got shape {array.shape}")
    _check_confidence(confidence)
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    half = float(stdtrit(len(array) - 1, 0.5 + confidence / 2)) * error
    mean = float(array.mean())
    return Interval(mean - half, mean + half)


def score_interval(score: Score, *, confidence: float = 0.95) -> Interval | None:
    """Return the interval of a score: Wilson's for a rate, Student's for another mean, None for what is no mean.

    Raises:
        ValueError: ``confidence`` is not in (0, 1).
    """
    documents = score.documents
    if (
        not len(documents)
        or score.standard_error is None
        or not math.isclose(score.value, float(documents.mean()), abs_tol=1e-9)
    ):
        return None
    if np.isin(documents, (0.0, 1.0)).all():
        return wilson_interval(float(documents.sum()), len(documents), confidence=confidence)
    return mean_interval(documents, confidence=confidence)


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Return the percentile interval of mean(first) - mean(second) on common documents.

    Both are (n,), entry by entry the scores of the same documents; documents are drawn with replacement.

    Raises:
        ValueError: shapes differ or are empty, ``resamples`` is not positive, or ``confidence`` not in (0, 1).
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"scores must be of the same documents, (n,) each, got shapes {a.shape} and {b.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be positive, got {resamples}")
    _check_confidence(confidence)
    means = _resampled_means(a - b, generator, resamples)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(low), float(high))


def paired_variance(scores: npt.ArrayLike) -> float:
    """Return the variance of a mean score that candidates do not share, from (candidates, documents) scores.

    Documents are common, so a hard draw lowers all candidates alike and changes no comparison. What is left is the
    residual mean square of a two-way analysis of variance without replication, divided by the number of documents:
    half the variance of the difference of two candidates, averaged over all pairs.

    Raises:
        ValueError: fewer than 2 candidates or 2 documents.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"scores must be of 2 candidates and 2 documents at least, got shape {table.shape}")
    residual = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    candidates, documents = table.shape
    return float(np.square(residual).sum() / ((candidates - 1) * (documents - 1) * documents))


def shrink(values: npt.ArrayLike, variance: float, predictor: npt.ArrayLike) -> Floats:
    """Return empirical-Bayes estimates of true values: the best of many noisy values is too good (winner's curse).

    Each of the (n,) ``values`` with the error ``variance`` is drawn towards the line through ``predictor`` (n,), an
    earlier and independent measurement, by the share of the scatter that the error explains (Efron and Morris 1975;
    Fay and Herriot 1979):  m_i + (1 - B) (y_i - m_i),  B = min(1, (n - p - 2) variance / sum (y - m)^2),  with p the
    parameters of the line. A falling line, or a constant predictor, is replaced by the mean. Fewer than 5 values say
    too little about their scatter and are returned as they are.

    Raises:
        ValueError: shapes differ, or ``variance`` is negative.
    """
    y, x = np.asarray(values, dtype=np.float64), np.asarray(predictor, dtype=np.float64)
    if y.ndim != 1 or y.shape != x.shape or variance < 0:
        raise ValueError(
            f"needed: (n,) values, as many predictors, variance >= 0; got {y.shape}, {x.shape}, {variance}"
        )
    if len(y) < 5:
        return y.copy()
    centred = x - x.mean()
    square = float(centred @ centred)
    slope = float(centred @ y) / square if square > 0.0 else 0.0
    parameters = 2 if slope > 0.0 else 1
    line = y.mean() + max(slope, 0.0) * centred
    scatter = float(np.square(y - line).sum())
    share = min(1.0, (len(y) - parameters - 2) * variance / scatter) if scatter > 0.0 else 1.0
    return np.asarray(line + (1.0 - share) * (y - line))


def combine(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Return the weighted mean of estimates from independent tasks.

    Its standard error is the root of the weighted sum of squares, None as soon as one is not known.

    Raises:
        ValueError: no estimates, as many weights as estimates are not given, or a weight is not positive.
    """
    if not estimates or len(estimates) != len(weights) or min(weights) <= 0:
        raise ValueError(f"a positive weight per estimate is needed, got {len(estimates)} and {list(weights)}")
    shares = [weight / math.fsum(weights) for weight in weights]
    value = math.fsum(share * estimate.value for share, estimate in zip(shares, estimates, strict=True))
    errors = [estimate.standard_error for estimate in estimates]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return Estimate(value, None)
    return Estimate(value, math.hypot(*(share * error for share, error in zip(shares, known, strict=True))))


def _resampled_means(values: Floats, generator: np.random.Generator, resamples: int) -> Floats:
    count = len(values)
    chunk = max(1, _RESAMPLED_AT_ONCE // count)
    means = [
        values[generator.integers(count, size=(min(chunk, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, chunk)
    ]
    return np.concatenate(means)


def _normal_quantile(confidence: float) -> float:
    _check_confidence(confidence)
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
