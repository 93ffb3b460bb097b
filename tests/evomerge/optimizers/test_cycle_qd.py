"""CycleQD: elites by cell, tasks in turn, a portfolio that covers more than random points do."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evomerge.archives.portfolio import elites, portfolio
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.cycle_qd import CycleQd, parent_chances
from evomerge.optimizers.random_search import RandomSearch
from search_spaces.genes import Gene, Genes, Genome

GENES = Genes(tuple(Gene(f"g{i}", 0.0, 1.5, 0.5) for i in range(6)))


@given(st.integers(0, 10**6), st.integers(2, 3), st.integers(2, 6))
def test_each_cell_keeps_its_best(seed, objectives, bins):
    values = np.random.default_rng(seed).random((40, objectives)).round(2)
    for quality in range(objectives):
        kept = elites(values, quality, bins)
        cells = np.minimum((np.delete(values, quality, axis=1) * bins).astype(int), bins - 1)
        assert len(np.unique(cells[kept], axis=0)) == len(kept) == len(np.unique(cells, axis=0))
        for row in kept:
            same = (cells == cells[row]).all(axis=1)
            assert values[row, quality] == values[same, quality].max()
        assert set(kept) <= set(portfolio(values, bins))


def test_portfolio_of_nothing_is_nothing():
    assert len(portfolio(np.zeros((0, 2)), 15)) == 0


def test_values_outside_the_range_count_as_its_ends():
    values = np.array([[0.5, -3.0], [0.6, 0.01], [0.4, 7.0]])
    assert elites(values, 0, 10).tolist() == [1, 2]


def test_better_parents_are_taken_more_often():
    chances = parent_chances(np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]))
    assert chances.sum() == 1.0
    np.testing.assert_allclose(chances / chances[0], [1.0, (1.3 / 0.5) ** 2, 1.3 / 0.5])


def skills(x):
    """Three skills; each wants two genes high and suffers from the others."""
    own = x.reshape(3, 2).mean(axis=1)
    return np.exp(-np.square(own - 1.0) - 0.25 * (own.sum() - own))


def cells_and_quality(optimizer, seed):
    rng, values = np.random.default_rng(seed), []
    optimizer.tell([Observation(Genome(row), skills(row), seed=True) for row in np.repeat(np.eye(3), 2, axis=1)])
    out = []
    for _ in range(400):
        out += optimizer.ask(4 - len(out))
        genome = out.pop(rng.integers(len(out)))
        values.append(skills(genome.values))
        optimizer.tell([Observation(genome, values[-1])])
    values = np.array(values)
    return sum(values[elites(values, q, 15)][:, q].sum() for q in range(3))


def test_portfolio_is_larger_and_better_than_random_search_finds():
    found = np.median([cells_and_quality(CycleQd(GENES, weights=np.ones(3), seed=s), s) for s in range(3)])
    random = np.median([cells_and_quality(RandomSearch(GENES, seed=s), s) for s in range(3)])
    assert found > 1.05 * random
