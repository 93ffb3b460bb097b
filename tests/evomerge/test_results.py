"""Intervals of scores and of their weighted mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.evaluation import Score
from evomerge.results import Estimate, estimate_of, joint

estimates = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 0.3), st.floats(0, 0.3)).map(
        lambda t: Estimate(t[0], t[0] - t[1], t[0] + t[2])
    ),
    min_size=1,
    max_size=5,
)


def rate(solved, count=512):
    documents = np.zeros(count)
    documents[:solved] = 1.0
    return estimate_of(Score(solved / count, float(documents.std(ddof=1) / count**0.5), documents))


def test_rates_have_wilsons_interval_also_at_the_ends():
    nothing = rate(0)
    assert (nothing.value, nothing.low) == (0.0, 0.0)
    assert nothing.high == pytest.approx(0.00745, abs=1e-4)


def test_other_means_have_a_symmetric_interval():
    documents = np.array([0.5, 1.5, 2.0, 4.0])
    found = estimate_of(Score(2.0, float(documents.std(ddof=1) / 2), documents))
    assert found.high - 2.0 == pytest.approx(2.0 - found.low)
    assert found.high > 2.0


def test_a_score_without_standard_error_has_no_interval():
    assert estimate_of(Score(0.3, None, np.array([1.0, 0.0]))) == Estimate(0.3, None, None)


@given(estimates)
def test_joint_of_one_is_itself_and_of_more_is_no_wider_than_the_widest(parts):
    found = joint(parts, np.ones(len(parts)))
    assert found.value == pytest.approx(np.mean([part.value for part in parts]))
    assert found.low <= found.value <= found.high
    assert found.high - found.value <= max(part.high - part.value for part in parts) + 1e-12


def test_joint_of_normal_intervals_adds_variances():
    parts = [Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.5, 0.9)]
    found = joint(parts, np.array([1.0, 3.0]))
    assert found.value == pytest.approx(0.65)
    assert found.high - found.value == pytest.approx(np.hypot(0.25 * 0.1, 0.75 * 0.2))


def test_joint_of_rates_at_zero_keeps_a_width():
    assert joint([rate(0), rate(0)], np.ones(2)).high > 0.004


def test_joint_without_an_interval_has_none():
    assert joint([Estimate(0.5, 0.4, 0.6), Estimate(0.5, None, None)], np.ones(2)) == Estimate(0.5, None, None)
