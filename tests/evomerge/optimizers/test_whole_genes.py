"""Integer and categorical genes: every optimizer that takes them proposes whole numbers; the others say why not."""

import numpy as np
import pytest

from evomerge.optimizers.contract import Observation
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import KINDS, algorithm
from evomerge.optimizers.suitability import REAL_ONLY
from search_spaces.genes import Gene, Genes, Genome

MIXED = Genes(
    (
        Gene("weight", 0.0, 1.5, 0.5),
        Gene.integer("layers", 1, 12, 6),
        Gene.categorical("operator", 4),
        Gene("density", 0.1, 1.0, 0.5),
        Gene.categorical("tensors", 2, 1),
    )
)


def value(x):
    """Best at weight 1, 9 layers, operator 2, density 0.4, tensors 0."""
    whole = 0.1 * abs(x[1] - 9.0) + (x[2] != 2.0) + 0.5 * (x[4] != 0.0)
    return -float((x[0] - 1.0) ** 2 + (x[3] - 0.4) ** 2 + whole)


def setting(genes=MIXED, objectives=1):
    return Setting(genes, np.ones(objectives), 400)


def best(kind, evaluations, seed=0):
    optimizer, rng, out, found = make_optimizer(algorithm(kind, seed=seed), setting()), np.random.default_rng(1), [], []
    for _ in range(evaluations):
        out += optimizer.ask(3 - len(out))
        genome = out.pop(rng.integers(len(out)))
        assert MIXED.contains(genome)
        found.append(value(genome.values))
        optimizer.tell([Observation(genome, np.array([found[-1]]))])
    return max(found)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in REAL_ONLY])
def test_proposals_are_whole_where_they_must_be(kind):
    best(kind, 12 if kind == "gp" else 40)


@pytest.mark.parametrize("kind", REAL_ONLY)
def test_real_optimizers_refuse_whole_genes(kind):
    with pytest.raises(ValueError, match="layers is integer; use cat_cma or nsga2"):
        make_optimizer(algorithm(kind), setting(objectives=2))


def test_cat_cma_finds_the_optimum_of_a_mixed_space():
    found = [best("cat_cma", 400, seed) for seed in range(3)]
    assert np.median(found) > -0.01
    assert np.median(found) > np.median([best("random", 400, seed) for seed in range(3)])


@pytest.mark.parametrize(
    "genes",
    [
        Genes((Gene.categorical("a", 3), Gene.categorical("b", 2))),
        Genes((Gene.integer("a", 0, 9, 4),)),
        Genes((Gene("a", 0.0, 1.0, 0.5),)),
    ],
)
def test_cat_cma_takes_spaces_of_one_kind(genes):
    optimizer = make_optimizer(algorithm("cat_cma"), setting(genes))
    for _ in range(60):
        genome = optimizer.ask(1)[0]
        assert genes.contains(genome)
        optimizer.tell([Observation(genome, np.array([genome.values.sum()]))])


def test_cat_cma_starts_at_the_best_seed():
    optimizer = make_optimizer(algorithm("cat_cma", population=40), setting())
    seed = MIXED.nearest(np.array([1.2, 11.0, 3.0, 0.9, 0.0]))
    optimizer.tell([Observation(Genome(seed), np.array([1.0]), seed=True)])
    points = np.array([genome.values for genome in optimizer.ask(40)])
    assert np.median(points[:, 1]) > 8
    assert (points[:, 2] == 3).mean() > 0.3
    assert points[:, 0].mean() > 0.9


def test_a_space_of_few_genomes_can_be_used_up():
    genes = Genes((Gene.categorical("a", 2), Gene.categorical("b", 2)))
    for kind in ("nsga2", "nsga3"):
        optimizer = make_optimizer(algorithm(kind), setting(genes))
        for _ in range(12):
            genome = optimizer.ask(1)[0]
            assert genes.contains(genome)
            optimizer.tell([Observation(genome, np.array([genome.values.sum()]))])
