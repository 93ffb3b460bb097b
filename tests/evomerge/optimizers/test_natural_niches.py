"""What natural niches and MAP-Elites do beyond the contract."""

from itertools import pairwise

import numpy as np
import pytest

from evomerge.optimizers.breeding import GeneBreeder, WeightBreeder
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.map_elites import MapElites
from evomerge.optimizers.natural_niches import NaturalNiches
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import algorithm
from search_spaces.genes import Gene, Genes, Genome

ONE = np.ones(1)
GENES = Genes(tuple(Gene(f"g{i}", -1.0, 2.0, 0.5) for i in range(8)))
FOUNDERS = tuple(Genome(row) for row in np.eye(3, 8) + 0.1)


def observe(genome, documents):
    scores = np.array(documents, dtype=float)
    return Observation(genome, np.array([scores.mean()]), documents=(scores,))


def niches(**changes):
    return NaturalNiches(WeightBreeder(FOUNDERS), **{"weights": ONE, "seed": 0, **changes})


def told(rows, **changes):
    optimizer = niches(**changes)
    optimizer.tell([observe(Genome(np.full(8, float(number))), row) for number, row in enumerate(rows)])
    return optimizer


def parents(optimizer, count=200):
    return [tuple(int(p.values[0]) for p in optimizer.parents_of(genome)) for genome in optimizer.ask(count)]


def test_first_parents_by_fitness_second_by_attraction():
    pairs = parents(told([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]]))
    assert all(first != second for first, second in pairs)
    assert {second for first, second in pairs if first == 0} == {1}, "the clone of the first adds nothing"


def test_where_nobody_is_attractive_the_others_are_drawn_by_fitness():
    pairs = parents(told([[1, 1], [1, 1], [0, 0]]))
    assert set(pairs) == {(0, 1), (1, 0)}


def test_where_nobody_solves_anything_everybody_may_be_a_parent():
    assert {first for first, _ in parents(told([[0, 0], [0, 0], [0, 0]]))} == {0, 1, 2}


def test_without_attraction_both_parents_are_drawn_by_fitness():
    pairs = parents(told([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], attraction=False))
    assert set(pairs) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_warm_up_and_an_empty_archive_found_points():
    optimizer = niches(warm_up=5)
    optimizer.tell([observe(Genome(np.full(8, float(n))), [1, 0] if n else [0, 1]) for n in range(2)])
    asked = optimizer.ask(6)
    founded = [set(optimizer.parents_of(genome)) <= set(FOUNDERS) for genome in asked]
    assert founded == [True] * 5 + [False]
    assert set(niches().ask(1)[0].values) - set(FOUNDERS[0].values)


def test_parents_are_forgotten_once_a_point_is_told():
    optimizer = niches()
    (genome,) = optimizer.ask(1)
    assert len(optimizer.parents_of(genome)) == 2
    optimizer.tell([observe(genome, [1, 0])])
    assert optimizer.parents_of(genome) == ()


def test_values_without_documents_are_refused():
    with pytest.raises(ValueError, match="scores of single documents"):
        niches().tell([Observation(FOUNDERS[0], ONE)])


@pytest.mark.parametrize("split", [True, False])
def test_weights_are_crossed_on_the_sphere(split):
    breeder, rng = WeightBreeder(FOUNDERS[:2], split=split), np.random.default_rng(0)
    a, b = (Genome(np.append(row, np.zeros(998))) for row in ([1.0, 0.0], [0.0, 1.0]))
    child = breeder.cross(a, b, rng).values
    if not split:
        assert np.linalg.norm(child) == pytest.approx(1.0)
    assert np.count_nonzero(child) == 2
    assert breeder.cross(a, a, rng).values == pytest.approx(a.values)


def test_mutation_is_gaussian_and_without_crossover_the_first_parent_is_kept():
    breeder = WeightBreeder(FOUNDERS[:2], crossover=False, mutation=0.01)
    a, b = Genome(np.zeros(5000)), Genome(np.ones(5000))
    child = breeder.cross(a, b, np.random.default_rng(0)).values
    assert child.std() == pytest.approx(0.01, rel=0.1)
    assert abs(child.mean()) < 0.001


def test_genes_are_split_at_a_point_and_stay_between_their_parents_but_for_mutations():
    breeder, rng = GeneBreeder(GENES), np.random.default_rng(0)
    low, high = Genome(np.zeros(8)), Genome(np.ones(8))
    values = np.array([breeder.cross(low, high, rng).values for _ in range(300)])
    changes = [sum(abs(b - a) > 1e-12 for a, b in pairwise(row)) for row in values]
    assert 0.2 < np.mean([change <= 1 for change in changes]) < 0.9, "one split point, and one mutated gene on average"
    assert all(GENES.contains(Genome(row)) for row in values)


def test_one_founder_is_refused():
    with pytest.raises(ValueError, match="at least two, got 1"):
        WeightBreeder(FOUNDERS[:1])


def test_other_optimizers_refuse_mosaics():
    setting = Setting(GENES, ONE, 100, mosaics=object())
    with pytest.raises(ValueError, match="cma_es cannot search mosaics; use natural_niches or map_elites"):
        make_optimizer(algorithm("cma_es"), setting)


def elites(cells=4):
    return MapElites(WeightBreeder(FOUNDERS), weights=np.ones(2), seed=0, cells=cells)


def point(number, values, **changes):
    return Observation(Genome(np.full(8, float(number))), values and np.array(values), **changes)


def test_the_best_of_every_cell_stays():
    optimizer = elites()
    optimizer.tell([point(0, [0.1, 0.1]), point(1, [0.2, 0.1]), point(2, [0.1, 0.9]), point(3, [0.15, 0.1])])
    assert [int(elite.genome.values[0]) for elite in optimizer.elites] == [1, 2]
    optimizer.tell([point(4, [1.0, 1.0]), point(5, None), point(6, [0.9, 0.1], estimated=True)])
    assert len(optimizer.elites) == 3


def test_seeds_that_change_the_scale_move_the_members_to_other_cells():
    optimizer = elites(cells=2)
    optimizer.tell([point(0, [0.5, 0.6]), point(1, [0.5, 0.9])])
    assert len(optimizer.elites) == 1
    seeds = [Observation(None, np.array(values), seed=True) for values in ([0.0, 0.0], [0.5, 4.0])]
    optimizer.tell(seeds)
    optimizer.tell([point(2, [0.5, 3.0])])
    assert len(optimizer.elites) == 2


def test_better_elites_are_parents_more_often():
    optimizer = elites()
    optimizer.tell([point(0, [0.05, 0.05]), point(1, [0.3, 0.3]), point(2, [0.9, 0.9])])
    firsts = [pair[0] for pair in parents(optimizer, 600)]
    counts = [firsts.count(n) for n in range(3)]
    assert counts[0] < counts[1] < counts[2]
