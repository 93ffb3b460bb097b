"""The one contract suite that every optimizer passes."""

import dataclasses

import numpy as np
import pytest

from evomerge.optimizers.contract import Observation, Optimizer
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import BREEDERS, KINDS, algorithm
from search_spaces.genes import Gene, Genes, Genome
from search_spaces.mosaic import Mosaic, MosaicAlgebra, read_genome
from search_spaces.mosaic_space import mean_names, shown_genes
from search_spaces.tiles import TileGrid

NAMES = ("density/a", "density/b", "weight/a", "weight/b", "other")
WEIGHTS = np.array([1.0, 2.0])
TARGET = np.array([0.3, 0.8, -0.2, 1.1, 0.0])
DOCUMENTS = np.linspace(0.1, 2.0, 8)


class GeneCase:
    """Vectors of genes."""

    genes = Genes(tuple(Gene(name, -1.0, 2.0, 0.5) for name in NAMES))
    mosaics = None
    target = Genome(TARGET)

    def contains(self, genome):
        return self.genes.contains(genome)


class MosaicCase:
    """Mosaics of four sources in two chromosomes of 6 and 9 tiles."""

    sources = np.random.default_rng(0).normal(size=(15, 4, 16))
    grid = TileGrid.of({"a": 6 * 16, "b": 9 * 16}, 16, [("first", ("a",)), ("rest", ("*",))])
    mosaics = MosaicAlgebra(grid, sources @ sources.transpose(0, 2, 1))
    genes = shown_genes(mean_names(("base", "x", "y", "z"), ("first", "rest")))
    target = mosaics.constant([0.1, 0.5, 0.2, 0.2])

    def contains(self, genome):
        ends = [segments.boundaries[-1] for segments in genome.segments]
        return isinstance(genome, Mosaic) and ends == [6, 9] and read_genome(genome.to_bytes()) == genome


CASES = [
    *((kind, GeneCase(), {}) for kind in KINDS),
    *((kind, MosaicCase(), {}) for kind in BREEDERS),
    ("cma_es", GeneCase(), {"preselect": 5, "correlation": 0.5}),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], type(case[1]).__name__, *case[2]]))
def case_of_kind(request):
    return request.param


@pytest.fixture
def kind(case_of_kind):
    return case_of_kind[0]


@pytest.fixture
def case(case_of_kind):
    return case_of_kind[1]


@pytest.fixture
def make(case_of_kind):
    kind, case, settings = case_of_kind
    setting = Setting(case.genes, WEIGHTS, 300, mosaics=case.mosaics)
    return lambda seed=0: make_optimizer(algorithm(kind, seed=seed, **settings), setting)


@pytest.fixture
def long(kind):
    """How many steps to take of so many: models take long. Optuna's are in use after 13, MAP's after 25."""
    most = {"gp": 16, "tpe": 60, "map": 45, "bayesian_map": 45, "nested_map": 120}.get(kind, 300)
    return lambda count: min(count, most)


def values(genome):
    distance = np.square(genome.values[:5] - TARGET)
    return np.array([-distance[:2].sum(), -distance[2:].sum()])


def observe(genome, *, failed=False):
    """Each objective has eight documents, which a point solves that is near enough to the target."""
    if failed:
        return Observation(genome, None)
    found = values(genome)
    return Observation(genome, found, documents=tuple((-value < DOCUMENTS).astype(float) for value in found))


def steps(optimizer, count, *, rng, fail_every=0, out=()):
    """Drive asynchronously: several out at once, told in random order; return every (event, genome)."""
    out, log = list(out), []
    for step in range(count):
        out += optimizer.ask(1)
        log.append(("ask", out[-1]))
        if len(out) < 4:
            continue
        genome = out.pop(rng.integers(len(out)))
        failed = fail_every and step % fail_every == 0
        optimizer.tell([observe(genome, failed=bool(failed))])
        log.append(("tell", genome, failed))
    return log


def test_is_an_optimizer(make):
    assert isinstance(make(), Optimizer)


def test_proposals_stay_inside_the_bounds(make, long, case):
    log = steps(make(), long(300), rng=np.random.default_rng(1))
    assert all(case.contains(entry[1]) for entry in log)


def test_ask_gives_as_many_as_asked_for_and_no_duplicates(make):
    asked = make().ask(50)
    assert len(asked) == 50
    assert len(set(asked)) == 50


def test_never_asks_for_a_genome_twice(make, long):
    asked = [e[1] for e in steps(make(), long(300), rng=np.random.default_rng(6), fail_every=5) if e[0] == "ask"]
    assert len(set(asked)) == len(asked) >= long(300)


def test_takes_any_subset_in_any_order(make, case):
    optimizer, rng = make(), np.random.default_rng(9)
    waiting, asked = [], []
    for _ in range(4):
        waiting += optimizer.ask(12)
        asked += waiting[-12:]
        rng.shuffle(waiting)
        told, waiting = waiting[:9], waiting[9:]  # some are left out for several rounds, and for ever
        optimizer.tell([observe(genome) for genome in told])
    assert len(set(asked)) == len(asked) == 48
    assert all(case.contains(genome) for genome in asked)


def test_takes_back_more_than_a_population_without_an_ask_between(make, case):
    """As at the end of a search with many workers."""
    optimizer = make()
    for genome in optimizer.ask(64):
        optimizer.tell([observe(genome)])
    assert case.contains(optimizer.ask(1)[0])


def test_tells_nothing_without_complaint(make, case):
    optimizer = make()
    optimizer.tell([])
    assert case.contains(optimizer.ask(1)[0])


def test_same_seed_same_genomes_other_seed_others(make, long):
    first, again, other = (
        [e[1] for e in steps(make(seed), long(100), rng=np.random.default_rng(2))] for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_global_generator_is_not_touched(make, long):
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    steps(make(), long(60), rng=np.random.default_rng(0))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_replay_equals_the_unbroken_run(make, long):
    unbroken = make()
    log = steps(unbroken, long(120), rng=np.random.default_rng(4), fail_every=7)
    replayed = make()
    for event, genome, *failed in log:
        if event == "ask":
            assert replayed.ask(1) == [genome]
        else:
            replayed.tell([observe(genome, failed=bool(failed[0]))])
    assert replayed.ask(3) == unbroken.ask(3)


def test_goes_on_when_everything_fails_and_recovers(make, long, case):
    optimizer = make()
    for _ in range(60):
        optimizer.tell([Observation(optimizer.ask(1)[0], None)])
    log = steps(optimizer, long(60), rng=np.random.default_rng(5))
    assert all(case.contains(entry[1]) for entry in log)


def test_takes_seeds_with_and_without_genome(make, case):
    optimizer = make()
    documents = (np.ones(8), np.ones(8))
    optimizer.tell([Observation(None, np.array([0.1, 0.2]), seed=True, documents=documents)])
    optimizer.tell([Observation(case.target, np.array([1.0, 1.0]), seed=True, documents=documents)])
    optimizer.tell([Observation(case.target, None, seed=True)])
    asked = optimizer.ask(3)
    assert all(case.contains(genome) for genome in asked)
    assert case.target not in asked


def test_estimates_of_racing_do_no_harm(make, case):
    optimizer = make()
    for genome in optimizer.ask(10):
        optimizer.tell([dataclasses.replace(observe(genome), estimated=True)])
    assert case.contains(optimizer.ask(1)[0])
