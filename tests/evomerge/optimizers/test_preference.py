"""Preferences beyond the weighted mean: Chebyshev and limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.objective import Objective
from evomerge.errors import BadSearch
from evomerge.optimizers.preference import Chebyshev, Constraint, Preference
from evomerge.preferences import (
    ChebyshevSettings,
    ConstraintSettings,
    WeightedSettings,
    aim_of,
    make_preference,
    parse_prefer,
)

OBJECTIVES = (Objective(task="add"), Objective(task="sort", weight=3.0), Objective(task="ppl", direction="minimize"))
RATES = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2).map(np.array)
VALUES = st.lists(st.floats(-50.0, 50.0), min_size=2, max_size=2).map(np.array)


def test_chebyshev_prefers_the_better_worst_objective():
    preference = Preference(np.ones(2), Chebyshev())
    assert preference.scalar(np.array([0.6, 0.6])) > preference.scalar(np.array([1.0, 0.5]))
    assert preference.scalar(np.array([1.0, 0.5])) > preference.scalar(np.array([0.9, 0.5]))


def test_chebyshev_weighs_what_is_missing():
    preference = Preference(np.array([1.0, 2.0]), Chebyshev())
    assert preference.scalar(np.array([0.4, 0.8])) > preference.scalar(np.array([0.8, 0.4]))


@given(values=RATES, better=RATES)
def test_chebyshev_never_prefers_a_dominated_point(values, better):
    preference = Preference(np.array([1.0, 3.0]), Chebyshev())
    assert preference.scalar(np.maximum(values, better)) >= preference.scalar(values) - 1e-12


@given(kept=VALUES, missed=VALUES)
def test_every_point_that_keeps_the_limits_comes_before_all_that_do_not(kept, missed):
    preference = Preference(np.ones(2), Constraint((-10.0, -np.inf)))
    preference.see_seed(np.array([0.0, 0.0]))
    preference.see_seed(np.array([20.0, 20.0]))
    kept[0], missed[0] = max(kept[0], -10.0), min(missed[0], -10.5)
    assert preference.scalar(kept) > preference.scalar(missed)


def test_points_that_miss_a_limit_stand_by_how_far():
    preference = Preference(np.ones(2), Constraint((0.5, 0.5)))
    assert preference.scalar(np.array([0.45, 0.5])) > preference.scalar(np.array([1.0, 0.4]))


def test_without_limits_met_the_weighted_mean_decides():
    preference = Preference(np.ones(2), Constraint((0.5, -np.inf)))
    assert preference.scalar(np.array([0.6, 0.9])) == pytest.approx(0.75)


def test_a_limit_where_less_is_better_is_turned():
    assert aim_of(OBJECTIVES, ConstraintSettings(limits={"ppl": 12.0})) == Constraint((-np.inf, -np.inf, -12.0))
    assert make_preference(OBJECTIVES, None).weights.tolist() == [1.0, 3.0, 1.0]


def test_over_some_objectives_leaves_the_others_out():
    preference = Preference(np.array([1.0, 3.0]))
    assert preference.over(np.array([0.2, 0.6]), [0]) == pytest.approx(0.2)
    assert preference.over(np.array([0.2, 0.6]), []) == pytest.approx(0.5)


def test_prefer_is_read():
    objectives, preference = parse_prefer("add=2, sort=1", OBJECTIVES)
    assert [o.weight for o in objectives] == [2.0, 1.0, pytest.approx(1e-9)]
    assert preference == WeightedSettings()
    objectives, preference = parse_prefer("chebyshev", OBJECTIVES)
    assert (objectives, preference) == (OBJECTIVES, ChebyshevSettings())
    objectives, preference = parse_prefer("add>=0.5,ppl<=12,sort=1", OBJECTIVES)
    assert preference == ConstraintSettings(limits={"add": 0.5, "ppl": 12.0})
    assert objectives[1].weight == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("add", "expected task=weight"),
        ("add=x", "expected task=weight"),
        ("mul=1", "no objective 'mul' \\(there: add, sort, ppl"),
        ("add=0", "a weight must be a positive number"),
        ("ppl>=3", "of ppl/acc less is better; write ppl<=limit"),
        ("chebyshev,add>=0.5", "got both; leave one out"),
    ],
)
def test_mistakes_in_prefer_are_explained(text, message):
    with pytest.raises(BadSearch, match=message):
        parse_prefer(text, OBJECTIVES)
