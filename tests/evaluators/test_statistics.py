"""Intervals against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evaluators.evaluation import Score
from evaluators.statistics import (
    Estimate,
    combine,
    mean_interval,
    normal_interval,
    paired_bootstrap,
    score_interval,
    wilson_interval,
)

CONFIDENCE = st.sampled_from([0.5, 0.9, 0.95, 0.99])


@given(count=st.integers(1, 500), data=st.data(), confidence=CONFIDENCE)
def test_wilson_is_that_of_scipy(count: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, count))
    expected = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, count, confidence=confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


@given(count=st.integers(1, 500), data=st.data())
def test_wilson_holds_the_rate_and_stays_a_rate(count: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, count))
    low, high = wilson_interval(successes, count)
    assert 0.0 <= low <= successes / count <= high <= 1.0
    assert low < high


def test_wilson_of_a_known_case() -> None:
    # Newcombe 1998, table I: 81 of 263
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_normal_interval() -> None:
    assert normal_interval(3.0, 0.5) == pytest.approx((3.0 - 1.959964 * 0.5, 3.0 + 1.959964 * 0.5), abs=1e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40), CONFIDENCE)
def test_mean_interval_is_students(values: list[float], confidence: float) -> None:
    low, high = mean_interval(values, confidence=confidence)
    mean, error = np.mean(values), stats.sem(values)
    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * error
    assert (low, high) == pytest.approx((mean - half, mean + half), rel=1e-9, abs=1e-9)


def test_score_interval_chooses_by_the_documents() -> None:
    rate = np.array([0.0, 1.0, 1.0, 0.0])
    assert score_interval(Score(0.5, 0.28, rate)) == wilson_interval(2, 4)
    marks = np.array([0.0, 0.5, 1.0, 0.25])
    assert score_interval(Score(0.4375, 0.2, marks)) == mean_interval(marks)
    assert score_interval(Score(0.6, None, rate)) is None, "f1 is no mean of its documents"
    assert score_interval(Score(0.6, 0.1, rate)) is None


def test_paired_bootstrap_comes_to_the_normal_interval_for_many_documents() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.3, 1.0, 4000), generator.normal(0.0, 1.0, 4000)
    difference = first - second
    expected = normal_interval(float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(4000))
    found = paired_bootstrap(first, second, generator=np.random.default_rng(1), resamples=4000)
    assert found == pytest.approx(expected, abs=0.005)


def test_paired_bootstrap_uses_the_pairing() -> None:
    hard = np.random.default_rng(0).normal(0.0, 5.0, 200)
    low, high = paired_bootstrap(hard + 0.1, hard, generator=np.random.default_rng(1), resamples=500)
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1)


def test_paired_bootstrap_is_reproducible_and_exact_for_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluators.statistics as module

    first, second = np.arange(10.0), np.zeros(10)
    whole = paired_bootstrap(first, second, generator=np.random.default_rng(3), resamples=100)
    monkeypatch.setattr(module, "_RESAMPLED_AT_ONCE", 70)
    assert paired_bootstrap(first, second, generator=np.random.default_rng(3), resamples=100) == whole


def test_combine_is_the_weighted_mean_of_independent_tasks() -> None:
    estimates = [Estimate(0.5, 0.03), Estimate(0.8, 0.04)]
    assert combine(estimates, [1.0, 1.0]) == pytest.approx((0.65, 0.025))
    assert combine(estimates, [3.0, 1.0]) == pytest.approx((0.575, math.hypot(0.75 * 0.03, 0.25 * 0.04)))
    assert combine([Estimate(0.5, None), Estimate(0.8, 0.1)], [1, 1]) == Estimate(pytest.approx(0.65), None)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: wilson_interval(5, 4), "5 of 4"),
        (lambda: wilson_interval(0, 0), "0 of 0"),
        (lambda: wilson_interval(1, 2, confidence=1.0), "confidence"),
        (lambda: normal_interval(0.0, -1.0), "standard_error"),
        (lambda: mean_interval([1.0]), r"shape \(1,\)"),
        (lambda: paired_bootstrap([1.0], [1.0, 2.0], generator=np.random.default_rng(0)), "same documents"),
        (lambda: paired_bootstrap([1.0], [1.0], generator=np.random.default_rng(0), resamples=0), "resamples"),
        (lambda: combine([], []), "weight"),
        (lambda: combine([Estimate(1.0, None)], [0.0]), "weight"),
    ],
)
def test_bad_arguments_are_named(call, match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=match):
        call()
