"""Bounds by transformation: inside the cube everywhere, the identity in the middle, and there and back again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.optimizers.bounds import MARGIN, from_unit_cube, to_unit_cube

ANY = arrays(np.float64, st.integers(1, 8), elements=st.floats(-1e6, 1e6))
UNIT = arrays(np.float64, st.integers(1, 8), elements=st.floats(0.0, 1.0))


@given(ANY)
def test_every_point_stands_for_one_of_the_cube(points):
    inside = to_unit_cube(points)
    assert ((inside >= 0.0) & (inside <= 1.0)).all()


@given(UNIT)
def test_there_and_back(unit):
    assert np.allclose(to_unit_cube(from_unit_cube(unit)), unit, rtol=0.0, atol=1e-12)


@given(ANY)
def test_a_mirror_image_and_its_nearest_point_stand_for_the_same(points):
    inside = to_unit_cube(points)
    assert np.allclose(to_unit_cube(from_unit_cube(inside)), inside, rtol=0.0, atol=1e-12)


def test_identity_in_the_middle_and_smooth_everywhere():
    middle = np.linspace(MARGIN, 1.0 - MARGIN, 101)
    assert np.allclose(to_unit_cube(middle), middle)
    line = np.linspace(-3.0, 4.0, 70001)
    slopes = np.diff(to_unit_cube(line)) / np.diff(line)
    assert np.abs(slopes).max() <= 1.0 + 1e-6
    assert np.abs(np.diff(slopes)).max() < 0.01  # no kink: the mirror turns on a parabola
    assert to_unit_cube(np.array([-MARGIN, 1.0 + MARGIN])).tolist() == [0.0, 1.0]
