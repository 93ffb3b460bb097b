"""What the optimizers find, against random search at equal evaluations. Everything is seeded."""

import numpy as np
import pytest

from evomerge.archives.pareto import hypervolume
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import algorithm
from search_spaces.genes import Gene, Genes

GENES = Genes(tuple(Gene(f"g{i}", 0.0, 1.5, 0.75) for i in range(5)))
TARGET = np.array([0.3, 1.2, 0.6, 1.4, 0.1])
IN_FLIGHT = 4


def bowl(x):
    return np.array([-float((np.arange(1, 6) * np.square(x - TARGET)).sum())])


def two_bowls(x):
    """Two optima a diagonal apart; the front is the line between them."""
    return np.array([-np.square(x - 0.3).mean(), -np.square(x - 1.2).mean()])


def found(kind, function, objectives, evaluations, seed):
    """Values of every evaluation of one search with four workers, told in random order."""
    optimizer = make_optimizer(algorithm(kind, seed=seed), Setting(GENES, np.ones(objectives), evaluations))
    rng, out, values = np.random.default_rng(seed), [], []
    for _ in range(evaluations):
        out += optimizer.ask(IN_FLIGHT - len(out))
        genome = out.pop(rng.integers(len(out)))
        values.append(function(genome.values))
        optimizer.tell([Observation(genome, values[-1])])
    return np.array(values)


def distance(kind, evaluations, seeds):
    """Median over seeds of how far the best value stays below the optimum, which is 0."""
    return np.median([-found(kind, bowl, 1, evaluations, seed).max() for seed in seeds])


@pytest.mark.parametrize(
    ("kind", "evaluations", "seeds", "share"),
    [("cma_es", 300, 5, 0.1), ("nsga2", 300, 5, 0.25), ("tpe", 150, 3, 0.6), ("gp", 24, 3, 0.3)],
)
def test_comes_nearer_to_the_optimum_than_random_search(kind, evaluations, seeds, share):
    random = distance("random", evaluations, range(seeds))
    assert distance(kind, evaluations, range(seeds)) < share * random


def test_nsga2_dominates_more_than_random_search():
    reference = np.array([-0.81, -0.81])  # each optimum's value for the other objective

    def volume(kind):
        values = [found(kind, two_bowls, 2, 600, seed) for seed in range(5)]
        return np.median([hypervolume(each, reference) for each in values])

    ideal = hypervolume(np.array([two_bowls(np.full(5, v)) for v in np.linspace(0.3, 1.2, 500)]), reference)
    assert ideal - volume("nsga2") < 0.55 * (ideal - volume("random"))


def test_map_dominates_with_half_the_evaluations_what_random_search_does():
    genes = Genes(GENES.genes[:3])
    reference, budget = np.array([-0.81, -0.81]), 2 * 10  # twice the coefficients of three genes

    def volume(kind, evaluations, seed):
        optimizer = make_optimizer(algorithm(kind, seed=seed), Setting(genes, np.ones(2), evaluations))
        values = []
        for _ in range(evaluations):
            genome = optimizer.ask(1)[0]
            values.append(two_bowls(genome.values))
            optimizer.tell([Observation(genome, values[-1])])
        return hypervolume(np.array(values), reference)

    half = np.median([volume("map", budget, seed) for seed in range(5)])
    assert half > np.median([volume("random", 2 * budget, seed) for seed in range(5)])


def test_nsga2_ends_on_the_whole_front():
    values = found("nsga2", two_bowls, 2, 500, 0)[-100:]
    assert values[:, 0].max() > -0.05
    assert values[:, 1].max() > -0.05
