"""Quadratic surrogates: links, exact recovery, leave-one-out errors that mean what they say, predicted fronts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from evomerge.archives.pareto import hypervolume
from evomerge.optimizers import surrogate as module
from evomerge.optimizers.surrogate import coefficients, features, fit, link_of
from evomerge.optimizers.surrogate_front import Surrogates, predicted_front, promising


def points(count, genes, seed=0):
    return np.random.default_rng(seed).random((count, genes))


def bowl(unit, target=0.6):
    return 2.0 - 6.0 * np.square(unit - target).sum(axis=1)


@pytest.mark.parametrize(("genes", "count"), [(1, 3), (2, 6), (3, 10), (4, 15), (8, 45)])
def test_number_of_coefficients(genes, count):
    assert coefficients(genes) == count == features(points(5, genes)).shape[1]


@pytest.mark.parametrize(
    ("values", "name"),
    [([0.0, 0.4, 1.0], "sigmoid"), ([-0.9, -0.1], "sigmoid"), ([-30.0, -2.0], "softplus"), ([-1.0, 4.0], "identity")],
)
def test_link_follows_from_the_values(values, name):
    assert link_of(np.array(values)).name == name


@given(st.lists(st.floats(-6.0, 6.0), min_size=2, max_size=8))
def test_slopes_are_the_derivatives_of_the_links(etas):
    eta = np.array(etas)
    for values in ([0.2, 0.9], [-0.9, -0.1], [-9.0, -1.0], [-1.0, 1.0]):
        link = link_of(np.array(values))
        numeric = (link.forward(eta + 1e-5) - link.forward(eta - 1e-5)) / 2e-5
        assert link.slope(eta) == pytest.approx(numeric, abs=1e-6)


@pytest.mark.parametrize("shape", [expit, lambda eta: expit(eta) - 1.0, lambda eta: -np.logaddexp(0.0, 3 * eta) - 1])
def test_recovers_what_a_link_of_a_quadratic_is_or_nearly_is(shape):
    known, new = points(30, 2), points(200, 2, seed=1)
    found = fit(known, shape(bowl(known)))
    truth = shape(bowl(new))
    assert found.r_squared > 0.95
    assert np.square(found.predict(new)[0] - truth).sum() < 0.03 * np.square(truth - truth.mean()).sum()


def test_leave_one_out_errors_are_near_those_of_fits_without_the_point():
    unit = points(24, 2)
    values = expit(bowl(unit)) + 0.02 * np.random.default_rng(3).standard_normal(24)
    values = np.clip(values, 0.0, 1.0)
    found = fit(unit, values)
    exact = [
        values[i] - fit(np.delete(unit, i, 0), np.delete(values, i)).predict(unit[i : i + 1])[0][0] for i in range(24)
    ]
    assert np.sqrt(np.mean(np.square(found.errors))) == pytest.approx(np.sqrt(np.mean(np.square(exact))), rel=0.5)
    assert found.r_squared == pytest.approx(
        1.0 - np.square(found.errors).sum() / np.square(values - values.mean()).sum()
    )


def test_noise_without_a_shape_has_a_poor_r_squared():
    values = np.random.default_rng(0).random(20)
    assert fit(points(20, 2), values).r_squared < 0.5


def test_does_not_diverge_with_as_many_points_as_coefficients():
    for seed in range(10):
        unit, new = points(15, 4, seed), points(300, 4, seed + 100)
        predicted, spread = fit(unit, expit(bowl(unit))).predict(new)
        assert np.isfinite(predicted).all()
        assert np.isfinite(spread).all()
        assert ((predicted >= 0.0) & (predicted <= 1.0)).all()


def test_equal_values_are_no_error():
    assert fit(points(8, 2), np.full(8, 0.5)).predict(points(3, 2))[0] == pytest.approx([0.5] * 3, abs=0.02)


def test_penalty_leaves_the_constant_free():
    assert module._penalty(features(points(4, 2)))[-1] < 1e-6


def two(unit):
    return np.column_stack([expit(bowl(unit, 0.2)), expit(bowl(unit, 0.8))])


def test_predicted_front_lies_between_the_optima_and_in_the_cube():
    known = points(20, 2)
    surrogates = Surrogates.fitted(known, two(known))
    front = predicted_front(surrogates, known, np.random.default_rng(0))
    assert ((front >= 0.0) & (front <= 1.0)).all()
    reference = np.zeros(2)
    line = two(np.repeat(np.linspace(0.2, 0.8, 200)[:, None], 2, axis=1))
    assert hypervolume(two(front), reference) > 0.97 * hypervolume(line, reference)


def test_promising_points_add_volume_and_differ():
    known = points(20, 2)
    surrogates = Surrogates.fitted(known, two(known))
    front = predicted_front(surrogates, known, np.random.default_rng(0))
    chosen = promising(surrogates, front, there=known, count=4)
    assert len({tuple(point) for point in chosen}) == 4
    reference = np.zeros(2)
    grown = hypervolume(np.vstack([two(known), two(np.array(chosen))]), reference)
    assert grown > hypervolume(two(known), reference)


def test_pending_points_are_not_chosen_again():
    known = points(20, 2)
    surrogates = Surrogates.fitted(known, two(known))
    front = predicted_front(surrogates, known, np.random.default_rng(0))
    first = promising(surrogates, front, there=known, count=1)[0]
    second = promising(surrogates, front, there=np.vstack([known, first]), count=1)[0]
    assert not np.array_equal(first, second)
