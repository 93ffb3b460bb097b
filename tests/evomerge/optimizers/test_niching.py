"""NSGA-III: even directions, niches, survival."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.archives.pareto import ranks
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.niching import associate, directions, survivors
from evomerge.optimizers.nsga3 import Nsga3
from search_spaces.genes import Gene, Genes


@pytest.mark.parametrize(
    ("objectives", "count", "found"), [(1, 30, 1), (2, 30, 30), (3, 30, 28), (4, 30, 20), (3, 91, 91)]
)
def test_directions_are_the_points_of_das_and_dennis(objectives, count, found):
    rays = directions(objectives, count)
    assert rays.shape == (found, objectives)
    assert rays.sum(axis=1) == pytest.approx(1.0)
    assert len(np.unique(rays.round(9), axis=0)) == found
    assert found in [comb(h + objectives - 1, objectives - 1) for h in range(1, 100)]


def test_points_belong_to_the_direction_they_lie_on():
    rays = directions(3, 28)
    niches = associate(-rays, ranks(-rays), rays)  # a linear front: each direction is a point of it
    assert niches.direction.tolist() == list(range(28))
    assert niches.distance == pytest.approx(0.0, abs=1e-7)


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 19))
def test_survivors_are_the_best_fronts(seed, objectives, count):
    rng = np.random.default_rng(seed)
    values = rng.random((20, objectives)).round(1)  # with equals
    kept = survivors(values, count, directions(objectives, 20), rng)
    assert len(set(kept.tolist())) == count
    fronts = ranks(values)
    left = np.setdiff1d(np.arange(20), kept)
    assert fronts[kept].max() <= fronts[left].min()


def test_survivors_are_spread_over_the_niches():
    share = np.concatenate([np.linspace(0.0, 0.1, 40), np.linspace(0.1, 1.0, 10)])  # crowded at one end
    values = np.column_stack([share, 1.0 - share])
    kept = share[survivors(values, 10, directions(2, 10), np.random.default_rng(0))]
    assert np.diff(np.sort(kept)).max() < 0.25


def test_nsga3_covers_a_front_of_three_objectives():
    genes = Genes(tuple(Gene(f"g{i}", 0.0, 1.0, 0.5) for i in range(3)))
    optimizer = Nsga3(genes, objectives=3, seed=0)
    targets = np.eye(3)
    for _ in range(500):
        genome = optimizer.ask(1)[0]
        optimizer.tell([Observation(genome, -np.square(genome.values - targets).sum(axis=1))])
    members = np.array([member.values for member in optimizer._members])
    assert (members.max(axis=0) > -0.15).all()  # near each optimum
    assert (members.min(axis=1).max()) > -0.8  # and in the middle, where all three are -2/3
