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
    paired_variance,
    score_interval,
    shrink,
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


# ------------------------------------------------------------------------- the winner's curse


def test_paired_variance_is_half_that_of_differences() -> None:
    generator = np.random.default_rng(0)
    pair = generator.normal(size=(2, 50)) + generator.normal(size=50)
    differences = pair[0] - pair[1]
    assert paired_variance(pair) == pytest.approx(differences.var(ddof=1) / 2 / 50)


@given(st.integers(2, 6), st.integers(2, 30), st.integers(0, 1000))
def test_paired_variance_is_the_mean_over_all_pairs(candidates: int, documents: int, seed: int) -> None:
    table = np.random.default_rng(seed).normal(size=(candidates, documents))
    pairs = [(a, b) for i, a in enumerate(table) for b in table[:i]]
    expected = np.mean([np.var(a - b, ddof=1) / 2 / documents for a, b in pairs])
    assert paired_variance(table) == pytest.approx(expected)


def test_shrinking_is_efron_and_morris_without_a_predictor() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])
    share = (6 - 3) * 0.5 / np.square(values - 4.0).sum()
    assert shrink(values, 0.5, np.zeros(6)) == pytest.approx(4.0 + (1 - share) * (values - 4.0))


def test_shrinking_with_a_predictor_is_fay_and_herriots() -> None:
    x, values = np.arange(7.0), np.array([0.0, 1.5, 1.0, 3.5, 4.0, 4.0, 7.0])
    line = np.polyval(np.polyfit(x, values, 1), x)
    share = (7 - 4) * 0.1 / np.square(values - line).sum()
    assert shrink(values, 0.1, x) == pytest.approx(line + (1 - share) * (values - line))


@given(st.lists(st.floats(0, 1), min_size=5, max_size=30), st.floats(0, 10), st.integers(0, 99))
def test_shrinking_keeps_the_mean_and_adds_no_scatter(values: list[float], variance: float, seed: int) -> None:
    predictor = np.random.default_rng(seed).random(len(values))
    found = shrink(values, variance, predictor)
    assert found.mean() == pytest.approx(np.mean(values), abs=1e-9)
    assert found.std() <= np.std(values) + 1e-9
    assert shrink(values, 0.0, predictor) == pytest.approx(values, abs=1e-9)


def test_few_values_are_left_alone() -> None:
    assert shrink([0.1, 0.9, 0.5, 0.4], 1.0, [1.0, 2.0, 3.0, 4.0]).tolist() == [0.1, 0.9, 0.5, 0.4]


def test_the_shrunken_choice_is_as_good_as_the_raw_maximum_and_claims_far_less() -> None:
    """A search in small: 200 candidates on 192 documents each, the best 16 on 256 others, one is chosen."""
    generator = np.random.default_rng(0)
    raw, fair, raw_bias, fair_bias = [], [], [], []
    for _ in range(2000):
        true = generator.normal(0.7, 0.02, 200)
        searched = true + generator.normal(0.0, 0.030, 200)
        best = np.argsort(-searched)[:16]
        validated = true[best] + generator.normal(0.0, 0.026, 16)
        shrunken = shrink(validated, 0.026**2, searched[best])
        for values, gain, bias in ((validated, raw, raw_bias), (shrunken, fair, fair_bias)):
            chosen = int(np.argmax(values))
            gain.append(true[best][chosen])
            bias.append(values[chosen] - true[best][chosen])
    assert np.mean(raw_bias) > 0.015
    assert abs(np.mean(fair_bias)) < 0.3 * np.mean(raw_bias)
    assert np.mean(fair) > np.mean(raw) - 0.001
