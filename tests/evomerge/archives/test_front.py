"""A front that grows point by point is the front of all its points."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.archives.pareto import Front, front


@given(arrays(np.float64, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=st.integers(0, 5).map(float)))
def test_equals_the_front_of_all_points(values):
    growing = Front(values.shape[1])
    extended = [growing.add(row) for row in values]
    kept = values[front(values)]
    assert sorted(map(tuple, growing.values)) == sorted(map(tuple, kept))
    assert len(growing) == len(kept)
    assert all(extended[i] for i in front(values))


def test_grows_beyond_its_first_allocation():
    growing = Front(2)
    for x in range(300):
        assert growing.add(np.array([float(x), -float(x)]))
    assert len(growing) == 300


def test_equals_and_dominated_points_do_not_extend_it():
    growing = Front(2)
    assert growing.add(np.array([1.0, 1.0]))
    assert not growing.add(np.array([1.0, 1.0]))
    assert not growing.add(np.array([0.5, 1.0]))
    assert growing.add(np.array([1.0, 2.0]))
    assert growing.values.tolist() == [[1.0, 2.0]]
