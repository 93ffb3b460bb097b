"""NSGA-II: variation inside the bounds, survival, failures, seeds, clones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.archives.pareto import crowding, ranks
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.nsga2 import Nsga2
from evomerge.optimizers.variation import Box, crossover, mutate
from search_spaces.genes import Gene, Genes, Genome

GENES = Genes(tuple(Gene(f"g{i}", -1.0, 1.0, 0.0) for i in range(3)))
BOX = Box(np.zeros(1), np.ones(1))
UNIT = st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4).map(np.array)


@given(first=UNIT, second=UNIT, seed=st.integers(0, 1000))
def test_children_lie_in_the_unit_cube(first, second, seed):
    rng = np.random.default_rng(seed)
    child = mutate(crossover(first, second, BOX, rng, probability=1.0), BOX, rng, probability=1.0)
    assert ((child >= 0.0) & (child <= 1.0)).all()


def test_crossover_keeps_the_mean_and_scatters_with_the_distance_of_parents():
    rng = np.random.default_rng(0)
    far, near = (
        np.array([crossover(np.full(1, 0.5 - d), np.full(1, 0.5 + d), BOX, rng) for _ in range(4000)])
        for d in (0.2, 0.02)
    )
    # half of the children cross and have mean 0.5; the others are the first parent
    assert far.mean() == pytest.approx(0.5 - 0.2 * (1.0 - 0.45), abs=0.01)
    assert far.std() == pytest.approx(10.0 * near.std(), rel=0.05)


def test_crossover_of_equal_parents_is_the_parent():
    point = np.array([0.0, 0.3, 1.0])
    assert (crossover(point, point, BOX, np.random.default_rng(0), probability=1.0) == point).all()


def test_mutation_changes_about_one_gene():
    rng = np.random.default_rng(0)
    changed = [(mutate(np.full(10, 0.5), BOX, rng) != 0.5).sum() for _ in range(2000)]
    assert np.mean(changed) == pytest.approx(1.0, abs=0.1)


def test_mutation_is_as_wide_as_the_formula_says():
    rng = np.random.default_rng(0)
    steps = np.array([mutate(np.full(1, 0.5), BOX, rng, eta=20.0, probability=1.0)[0] - 0.5 for _ in range(20000)])
    assert steps.mean() == pytest.approx(0.0, abs=0.002)
    assert np.abs(steps).mean() == pytest.approx(1.0 / 22.0, rel=0.03)  # E|delta| = 1/(eta + 2) far from the bounds


def test_ranks_are_successive_fronts():
    values = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 0.5], [0.5, 0.5], [3.0, 1.0]])
    assert ranks(values).tolist() == [0, 0, 1, 2, 0]
    assert ranks(np.array([[1.0], [5.0], [5.0], [2.0]])).tolist() == [2, 0, 0, 1]


def test_crowding_is_the_sum_of_neighbours_gaps():
    values = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    assert crowding(values).tolist() == [np.inf, 1.5, 1.5, np.inf]
    assert crowding(np.ones((3, 2))).tolist() == [0.0, 0.0, 0.0]


def drive(optimizer, count, values):
    """One at a time; returns the genomes."""
    asked = []
    for _ in range(count):
        asked += optimizer.ask(1)
        optimizer.tell([Observation(asked[-1], values(asked[-1].values))])
    return np.array([genome.values for genome in asked])


def test_failures_never_become_parents():
    """The better half of the space fails: children stay in the other half."""
    asked = drive(
        Nsga2(GENES, seed=0, population=20), 300, lambda x: None if x[0] > 0 else np.array([x[0], -abs(x[1])])
    )
    assert (asked[20:, 0] > 0).mean() < 0.4
    assert asked[20:][asked[20:, 0] <= 0, 0].mean() > -0.2


def test_a_seed_becomes_a_parent():
    optimizer = Nsga2(GENES, seed=0, population=4)
    optimizer.tell([Observation(Genome([0.9, 0.9, 0.9]), np.array([100.0, 100.0]), seed=True)])
    for _ in range(4):
        optimizer.tell([Observation(optimizer.ask(1)[0], np.array([0.0, 0.0]))])
    children = np.array([genome.values for genome in optimizer.ask(60)])
    assert (children == 0.9).any(axis=1).mean() > 0.2  # a gene that is neither crossed nor mutated is the seed's


def test_of_equal_values_the_better_tie_break_survives():
    optimizer = Nsga2(GENES, seed=0, population=4)
    asked = optimizer.ask(30)
    optimizer.tell([Observation(genome, np.zeros(2), tie_break=genome.values[0]) for genome in asked])
    best = sorted(genome.values[0] for genome in asked)[-4:]
    children = np.array([genome.values for genome in optimizer.ask(100)])
    assert np.isin(children[:, 0], best).mean() > 0.3


def test_a_corner_population_goes_on_with_new_points():
    """On a problem whose optimum is a corner, children repeat it; no genome is asked for twice."""
    asked = drive(Nsga2(GENES, seed=0, population=4), 600, lambda x: np.array([float(np.floor(x).sum())]))
    assert len(np.unique(asked, axis=0)) == 600
