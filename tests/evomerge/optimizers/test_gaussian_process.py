"""The Gaussian process behind CMA-ES: textbook algebra, scales found by likelihood, what failures mean."""

import numpy as np
import pytest

from evomerge.optimizers.contract import Observation
from evomerge.optimizers.foresight import FEWEST, MOST, Foresight
from evomerge.optimizers.gaussian_process import LENGTHS, NOISES, GaussianProcess
from evomerge.optimizers.preference import Preference
from search_spaces.genes import Genome

GROUPS = np.array([0, 1, 0, 1, 0, 1])


def made(values_of, count=60, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.random((count, len(GROUPS)))
    process = GaussianProcess(GROUPS)
    values = values_of(points) + noise * rng.standard_normal(count)
    for _ in range(6):
        process.fit(points, values)
    return process, points, values


def of_means(points):
    return np.sin(3.0 * points[:, GROUPS == 0].mean(axis=1)) + points[:, GROUPS == 1].mean(axis=1)


def test_predicts_what_it_has_not_seen():
    process, _, values = made(of_means)
    others = np.random.default_rng(1).random((200, len(GROUPS)))
    errors = process.predict(others) - of_means(others)
    assert np.sqrt(np.square(errors).mean()) < 0.1 * values.std()


def test_finds_that_only_the_means_of_groups_matter():
    process, _, _ = made(of_means)
    means, rest, _ = process._scales
    assert LENGTHS[rest] > 2.0 * LENGTHS[means]


def test_finds_how_much_is_noise():
    (quiet, _, _), (loud, _, _) = made(of_means), made(of_means, noise=0.3)
    assert NOISES[loud._scales[2]] > 10.0 * NOISES[quiet._scales[2]]


def test_the_prediction_is_that_of_the_textbook():
    process, points, values = made(of_means, noise=0.1)
    means, rest, noise = process._scales

    def kernel(some, others):
        found = np.empty((len(some), len(others)))
        for i, one in enumerate(some):
            for j, other in enumerate(others):
                step = one - other
                mean = np.array([step[g == GROUPS].mean() for g in (0, 1)])
                far = 3.0 * np.square(mean).sum() / LENGTHS[means] ** 2
                far += np.square(step - mean[GROUPS]).sum() / LENGTHS[rest] ** 2
                distance = np.sqrt(5.0 * far)
                found[i, j] = (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
        return found

    others = np.random.default_rng(2).random((5, len(GROUPS)))
    inverse = np.linalg.inv(kernel(points, points) + NOISES[noise] * np.eye(len(points)))
    expected = values.mean() + kernel(others, points) @ inverse @ (values - values.mean())
    assert process.predict(others) == pytest.approx(expected)


def test_nothing_is_predicted_from_nothing():
    with pytest.raises(ValueError, match="predicts after it was fitted"):
        GaussianProcess(GROUPS).predict(np.zeros((1, 6)))


def test_equal_values_are_expected_everywhere():
    process, points, _ = made(lambda points: np.full(len(points), 0.25))
    assert process.predict(points + 0.1) == pytest.approx(0.25)


def foresight_of(pairs, preference=None):
    foresight = Foresight(GROUPS, preference or Preference(np.ones(2)))
    for point, values in pairs:
        foresight.see(point, Observation(Genome(point), values))
    return foresight


def test_where_candidates_fail_little_is_expected():
    points = np.random.default_rng(3).random((80, len(GROUPS)))
    foresight = foresight_of((p, None if p[0] > 0.7 else np.array([1.0 - p[1], 0.5])) for p in points)
    failing, fine = np.full(6, 0.5), np.full(6, 0.5)
    failing[0], fine[0] = 0.9, 0.3
    assert np.diff(foresight.expected(np.stack([failing, fine])))[0] > 0.05


def test_a_late_seed_changes_the_scales_of_what_is_known():
    points = np.random.default_rng(5).random((FEWEST + 1, len(GROUPS)))
    pairs, seed = [(point, 100.0 * point[:2]) for point in points], np.array([10.0, 1000.0])
    preference = Preference(np.ones(2))
    foresight = foresight_of(pairs, preference)
    preference.see_seed(np.zeros(2))
    preference.see_seed(seed)
    foresight.see(np.zeros(6), Observation(Genome(np.zeros(6)), seed, seed=True))
    again = foresight_of([*pairs, (np.zeros(6), seed)], preference)  # which knows the scales from the start
    assert foresight.expected(points) == pytest.approx(again.expected(points))


def test_nothing_is_expected_before_enough_succeeded_and_the_latest_points_are_kept():
    points = np.random.default_rng(4).random((MOST + 20, len(GROUPS)))
    assert not foresight_of((p, None) for p in points).ready
    assert not foresight_of((p, np.ones(2)) for p in points[: FEWEST - 1]).ready
    everything, latest = (foresight_of((p, p[:2]) for p in some) for some in (points, points[20:]))
    assert everything.ready
    assert everything.expected(points) == pytest.approx(latest.expected(points))
