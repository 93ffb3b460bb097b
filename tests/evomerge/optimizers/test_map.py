"""MAP and its kin: the design, the refusal of poor surrogates, uncertainty, merges of two."""

import numpy as np
import pytest

from evomerge.optimizers.bayesian_map import BayesianMap, angles, bin_scores
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.map_search import MapSearch
from evomerge.optimizers.nested_map import NestedMap
from evomerge.optimizers.preference import Preference
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import algorithm
from search_spaces.genes import Gene, Genes, Genome


def genes(count):
    return Genes(tuple(Gene(f"g{i}", 0.0, 1.5, 0.5) for i in range(count)))


def two_bells(x):
    return np.exp([-np.square(x - 0.3).sum(), -np.square(x - 0.9).sum()])


def drive(optimizer, function, count):
    asked = []
    for _ in range(count):
        genome = optimizer.ask(1)[0]
        asked.append(genome)
        optimizer.tell([Observation(genome, function(genome.values))])
    return asked


def test_design_holds_the_anchors_and_even_points():
    asked = MapSearch(genes(2), seed=0).ask(9)
    for point in ([1.0, 0.0], [0.0, 1.0], [0.3, 0.3], [0.6, 0.6], [0.9, 0.9], [0.75, 0.75]):
        assert Genome(point) in asked


def test_anchors_that_are_seeds_are_not_evaluated_twice():
    optimizer = MapSearch(genes(2), seed=0)
    optimizer.tell([Observation(Genome([1.0, 0.0]), np.array([0.5, 0.5]), seed=True)])
    assert Genome([1.0, 0.0]) not in optimizer.ask(20)


def test_after_the_design_it_proposes_points_of_the_front():
    optimizer = MapSearch(genes(2), seed=0)
    drive(optimizer, two_bells, 9)
    later = np.array([genome.values for genome in drive(optimizer, two_bells, 6)])
    assert optimizer.r_squared.min() > 0.9
    off_the_line = np.abs(later[:, 0] - later[:, 1])
    assert np.median(off_the_line) < 0.2
    assert ((later > 0.15) & (later < 1.05)).mean() > 0.8


def test_poor_surrogates_are_refused_and_the_design_goes_on():
    rng = np.random.default_rng(0)
    noise = MapSearch(genes(2), seed=4)
    asked = drive(noise, lambda x: rng.random(2), 20)
    even = MapSearch(genes(2), seed=4, design=64).ask(40)
    assert noise.r_squared.min() < 0.5
    assert sum(genome in even for genome in asked[9:]) >= 8


def test_estimates_guide_but_are_never_taken_for_the_measured_front():
    optimizer = MapSearch(genes(2), seed=0)
    genome = optimizer.ask(1)[0]
    optimizer.tell([Observation(genome, np.array([9.0, 9.0]), estimated=True)])
    assert genome in optimizer._known
    assert genome not in optimizer._measured


@pytest.mark.parametrize("kind", ["map", "bayesian_map"])
def test_a_budget_below_twice_the_coefficients_is_refused(kind):
    with pytest.raises(ValueError, match="at least 30, got 29; use fewer layer and tensor groups"):
        make_optimizer(algorithm(kind), Setting(genes(4), np.ones(2), 29))
    make_optimizer(algorithm(kind), Setting(genes(4), np.ones(2), 30))


def test_bayesian_map_refuses_more_genes_than_it_has_bins_for():
    with pytest.raises(ValueError, match="at most 6 genes, got 7"):
        make_optimizer(algorithm("bayesian_map"), Setting(genes(7), np.ones(2), 500))


def test_angles_and_points_in_a_bin_agree():
    optimizer = BayesianMap(genes(3), seed=0)
    for number in range(optimizer._bin_count):
        points = np.array([optimizer._point_in(number) for _ in range(20)])
        assert ((points >= 0.0) & (points <= 1.0)).all()
        assert (optimizer._bins_of(points) == number).all()
    assert angles(np.array([[1.0, 0.0], [0.0, 1.0]])).ravel() == pytest.approx([0.0, np.pi / 2])


def test_bins_with_larger_errors_score_higher_and_empty_ones_as_high_as_any():
    squared, bins = np.array([0.1, 0.1, 0.1, 1.0, 1.0, 0.9]), np.array([0, 0, 0, 1, 1, 1])
    scores = bin_scores(squared, bins, 3, np.random.default_rng(0))
    assert scores[0] < scores[1] == scores[2]


def test_bayesian_map_refits_within_its_design():
    optimizer = BayesianMap(genes(2), seed=0)
    drive(optimizer, two_bells, 8)
    first = len(optimizer._fitted_to)
    drive(optimizer, two_bells, 1)
    assert len(optimizer._fitted_to) > first > 0


def nested(count, per_pair=12, objectives=None):
    preference = Preference(np.ones(objectives or count))
    return NestedMap(genes(count), preference=preference, seed=0, evaluations_per_pair=per_pair)


def separable(x):
    """Each task wants 0.8 of its own model and little of the others."""
    return np.array([np.exp(-((x[i] - 0.8) ** 2) - 0.2 * np.square(np.delete(x, i)).sum()) for i in range(len(x))])


def test_nested_map_measures_each_model_alone_first():
    assert nested(3).ask(3) == [Genome(row) for row in np.eye(3)]


def test_nested_map_merges_all_in_a_tree_and_finds_a_better_merge():
    optimizer = nested(4)
    asked = drive(optimizer, separable, 4 + 3 * 12)
    used = [frozenset(np.flatnonzero(genome.values).tolist()) for genome in asked]
    assert max(map(len, used[4:16])) == 2  # the first merge is of two models
    assert max(map(len, used[-12:])) == 4  # the last one of all
    best = max(separable(genome.values).mean() for genome in asked)
    assert best > separable(np.full(4, 0.25)).mean()
    assert best > max(separable(row).mean() for row in np.eye(4))


def test_nested_map_wants_coefficients():
    shifted = Genes((Gene("density", 0.1, 1.0, 0.5), Gene("other", 0.1, 1.0, 0.5)))
    with pytest.raises(ValueError, match="density has \\[0.1, 1\\]"):
        make_optimizer(algorithm("nested_map"), Setting(shifted, np.ones(2), 500))
    with pytest.raises(ValueError, match="at least 40 for 4 genes"):
        make_optimizer(algorithm("nested_map"), Setting(genes(4), np.ones(2), 39))


def test_a_model_that_fails_alone_does_not_stop_the_tree():
    optimizer = nested(3)
    for _ in range(60):
        genome = optimizer.ask(1)[0]
        fails = genome == Genome([1.0, 0.0, 0.0])
        optimizer.tell([Observation(genome, None if fails else separable(genome.values))])
    assert len(optimizer._models) == 0
