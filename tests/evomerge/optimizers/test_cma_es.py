"""CMA-ES: it finds optima, starts at the best seed, and failures do not poison it."""

import numpy as np
import pytest

from evomerge.optimizers.cma_es import MOST_MOVES, CmaEs
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.preference import Preference, ranked_values
from search_spaces.genes import Gene, Genes, Genome

ONE = np.ones(1)


def genes(count, low=0.0, high=1.5):
    return Genes(tuple(Gene(f"g{i}", low, high, (low + high) / 2) for i in range(count)))


def best_after(optimizer, function, evaluations, fail=lambda genome: False):
    best = -np.inf
    for _ in range(evaluations):
        genome = optimizer.ask(1)[0]
        value = None if fail(genome) else function(genome.values)
        best = best if value is None else max(best, value)
        optimizer.tell([Observation(genome, None if value is None else np.array([value]))])
    return best


@pytest.mark.parametrize("dimensions", [1, 2, 10])
def test_finds_the_optimum_of_an_ellipsoid(dimensions):
    target = np.linspace(0.2, 1.2, dimensions)
    stretch = np.logspace(0, 1, dimensions)
    optimizer = CmaEs(genes(dimensions), weights=ONE, seed=0)
    assert best_after(optimizer, lambda x: -float((stretch * np.square(x - target)).sum()), 1200) > -1e-4


def test_optimum_on_a_bound_is_reached():
    optimizer = CmaEs(genes(4), weights=ONE, seed=0)
    assert best_after(optimizer, lambda x: float(x.sum()), 800) > 4 * 1.5 - 1e-2


def test_failures_in_half_of_the_space_do_not_keep_it_from_the_optimum():
    optimizer = CmaEs(genes(4), weights=ONE, seed=0)
    found = best_after(
        optimizer, lambda x: -float(np.square(x - 0.9).sum()), 1500, fail=lambda genome: genome.values[0] > 1.0
    )
    assert found > -1e-3


def test_starts_at_the_best_seed():
    optimizer = CmaEs(genes(20), weights=ONE, seed=0, sigma=0.01)
    near, far = Genome([0.3] * 20), Genome([1.2] * 20)
    optimizer.tell([Observation(far, np.array([0.1]), seed=True), Observation(near, np.array([0.9]), seed=True)])
    mean = np.mean([genome.values for genome in optimizer.ask(100)])
    assert mean == pytest.approx(0.3, abs=0.02)


def test_plateaus_do_not_end_the_search():
    optimizer = CmaEs(genes(6), weights=ONE, seed=1)
    coarse = best_after(optimizer, lambda x: float(np.floor(-10 * np.square(x - 0.4).sum()) / 10), 1500)
    assert coarse >= -0.1


def test_separable_from_a_hundred_genes_on_unless_told_otherwise():
    for count, asked_for, expected in ((99, None, False), (100, None, True), (100, False, False), (5, True, True)):
        assert CmaEs(genes(count), weights=ONE, seed=0, separable=asked_for)._separable is expected


def test_two_thousand_genes_are_searched_with_a_diagonal():
    """No matrix of 2,000 x 2,000 numbers is kept or drawn from, and it climbs all the same."""
    optimizer = CmaEs(genes(2000), weights=ONE, seed=0)
    start = 2000 * 0.4**2 + 2000 * 0.28**2  # the middle of the space, and the scatter of the first points around it
    assert best_after(optimizer, lambda x: -float(np.square(x - 1.15).sum()), 2000) > -0.5 * start
    sizes = [np.size(value) for value in vars(optimizer._run.sm).values()]
    assert max(sizes) <= 2000


def test_preselection_comes_nearer_with_the_same_evaluations():
    """Half as near is what two hundred evaluations are worth; measured it was a quarter (docs/optimizers.md)."""
    target, stretch = np.linspace(0.2, 1.2, 10), np.logspace(0, 1, 10)

    def gap(preselect, seed):
        optimizer = CmaEs(genes(10), weights=ONE, seed=seed, preselect=preselect)
        return -best_after(optimizer, lambda x: -float((stretch * np.square(x - target)).sum()), 150)

    assert np.median([gap(20, seed) / gap(1, seed) for seed in range(3)]) < 0.5


def test_genes_of_one_expert_begin_correlated():
    """The layers of one expert move together at first, those of another independently."""
    names = [f"weight/{expert}/layers-{layer}-{layer}" for layer in range(4) for expert in "ab"]
    optimizer = CmaEs(Genes(tuple(Gene(n, 0.0, 1.5, 0.75) for n in names)), weights=ONE, seed=0, correlation=0.6)
    drawn = np.array([genome.values for genome in optimizer.ask(2000)])
    same = np.arange(8)[:, None] % 2 == np.arange(8)[None, :] % 2
    expected = np.where(same, 0.6, 0.0) + 0.4 * np.eye(8)
    assert np.corrcoef(drawn.T) == pytest.approx(expected, abs=0.08)


def preference_of(*seeds):
    preference = Preference(np.ones(len(seeds[0])))
    for values in seeds:
        preference.see_seed(np.array(values))
    return preference


def test_preference_scales_what_is_no_rate_to_the_range_of_the_seeds():
    preference = preference_of([0.0, 100.0], [1.0, 300.0])
    assert preference.scalar(np.array([0.5, 200.0])) == pytest.approx(0.5)
    assert preference.scalar(np.array([1.0, 100.0])) == pytest.approx(preference.scalar(np.array([0.0, 300.0])))


def test_rates_keep_their_scale_however_little_the_seeds_score():
    preference = preference_of([0.0, 0.0], [0.9, 0.01])
    assert preference.scalar(np.array([0.8, 0.1])) == pytest.approx(0.45)


def test_error_rates_and_losses_are_turned_so_that_more_is_better():
    preference = preference_of([-0.9, -30.0], [-0.2, -10.0])
    assert preference.scaled(np.array([-0.25, -10.0])).tolist() == pytest.approx([0.75, 1.0])


def test_preference_without_seeds_is_the_plain_mean():
    assert Preference(np.ones(2)).scalar(np.array([0.2, 0.6])) == pytest.approx(0.4)


def test_tie_break_orders_equals_and_never_outweighs_a_document():
    preference = Preference(ONE)
    assert preference.scalar(np.array([0.5]), 3.0) > preference.scalar(np.array([0.5]), -3.0)
    assert preference.scalar(np.array([0.5001]), -1e9) > preference.scalar(np.array([0.5]), 1e9)


def test_a_failure_ranks_behind_every_success():
    observations = [Observation(Genome([0.0]), v) for v in (np.array([-5.0]), None, np.array([2.0]))]
    numbers = ranked_values(observations, Preference(ONE))
    assert numbers[1] < numbers[0] < numbers[2]
    with pytest.raises(ValueError, match="all observations failed"):
        ranked_values([Observation(Genome([0.0]), None)], Preference(ONE))


def test_estimates_rank_behind_what_was_measured_and_before_failures():
    given = [(0.9, True), (0.2, False), (0.5, True), (None, False), (0.6, False)]
    observations = [Observation(Genome([0.0]), None if v is None else np.array([v]), estimated=e) for v, e in given]
    numbers = ranked_values(observations, Preference(ONE))
    assert sorted(range(5), key=lambda i: -numbers[i]) == [4, 1, 0, 2, 3]
    only_estimates = ranked_values([observations[0], observations[2]], Preference(ONE))
    assert only_estimates[0] > only_estimates[1]


def test_racing_finds_more_with_the_same_documents():
    """Candidates are stopped against the best so far after batches of documents; their estimates are noisy."""
    gained = [raced(seed, racing=True) - raced(seed, racing=False) for seed in range(6)]
    assert np.median(gained) > 0.0


def raced(seed, *, racing, documents=256, batch=32, budget=100 * 256):
    """Return the true quality of the best measured candidate after ``budget`` documents of a ten-gene bowl."""
    rng = np.random.default_rng(seed)
    target, thresholds = rng.uniform(0.2, 1.3, 10), rng.uniform(0.0, 1.0, documents)
    optimizer = CmaEs(genes(10), weights=ONE, seed=seed)
    best, quality, spent = None, 0.0, 0
    while spent < budget:
        genome = optimizer.ask(1)[0]
        true = float(np.exp(-np.square(genome.values - target).sum()))
        solved = (thresholds + rng.normal(0.0, 0.15, documents) < true).astype(float)
        used = documents
        if racing and best is not None:
            used = next((k for k in range(batch, documents, batch) if is_worse(solved[:k], best[:k])), documents)
        spent += used
        estimated = used < documents
        value = best.mean() + (solved - best)[:used].mean() if estimated else solved.mean()
        optimizer.tell([Observation(genome, np.array([value]), estimated=estimated)])
        if not estimated and (best is None or value > best.mean()):
            best, quality = solved, true
    return quality


def is_worse(solved, best):
    difference = solved - best
    return difference.mean() + 2.5 * max(difference.std(ddof=1), 0.02) / np.sqrt(len(solved)) < 0.0


def test_points_of_a_finished_run_are_not_told_to_the_next():
    optimizer = CmaEs(genes(2), weights=ONE, seed=0, population=4)
    late = optimizer.ask(1)[0]
    first = optimizer._run
    while optimizer._run is first:  # converge on a point, so that pycma ends the run
        genome = optimizer.ask(1)[0]
        optimizer.tell([Observation(genome, np.array([-float(np.square(genome.values - 0.4).sum())]))])
    before = len(optimizer._returned)
    optimizer.tell([Observation(late, np.array([1.0]))])
    assert len(optimizer._returned) == before


def test_a_point_that_was_out_for_many_moves_tells_nothing():
    optimizer = CmaEs(genes(5), weights=ONE, seed=0)
    late = optimizer.ask(1)[0]
    while optimizer._moves <= MOST_MOVES:
        recent = optimizer.ask(1)[0]
        optimizer.tell([Observation(recent, np.array([float(recent.values.sum())]))])
    recent = optimizer.ask(1)[0]
    optimizer.tell([Observation(late, np.array([9.0])), Observation(recent, np.array([1.0]))])
    assert [observation.genome for observation in optimizer._returned] == [recent]


def test_weights_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        Preference(np.array([1.0, 0.0]))
