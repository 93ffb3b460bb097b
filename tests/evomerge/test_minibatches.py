"""Minibatches of search documents: who sees which, what is recorded, and that a killed search continues as unbroken."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_search import DieAfter, Stop, finish, genomes, started
from fakes import FakeSpec, UnequalWorkers, problem, search_file
from pydantic import ValidationError

from evaluators.evaluation import Documents, Evaluation, Score
from evaluators.objective import EvaluationSettings, MinibatchSettings, Objective
from evomerge import estimate, tables
from evomerge.best_known import BestKnown
from evomerge.errors import BadSearch
from evomerge.minibatches import Minibatches, points_between_middles, refuse_few_documents, share_in_full
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.contract import HasGenerations, Observation
from evomerge.problem import Problem
from evomerge.records import CandidateRecord, EvaluationRecord, Measured
from evomerge.report_facts import facts
from evomerge.runner import Machine, random_variant
from search_spaces.genes import Gene, Genes, Genome

FOUR = {"minibatches": 4}
SMOOTH = {"minibatches": {"count": 4, "measure": "probability"}}
TWO = MinibatchSettings(count=2)
ALL = 80  # search documents of the fakes, over both tasks


def searched(folder, **changes):
    return search_file(folder, **{"evaluation": FOUR, "budget": {"evaluations": 70, "finalists": 5}, **changes})


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return finish(searched(tmp_path_factory.mktemp("minibatches")))


def search_evaluations(results):
    return [(c, e) for c in results.candidates if (e := c.evaluations.get("search")) and e.answered_from is None]


def test_points_of_a_generation_see_one_minibatch_and_the_next_see_the_next(results):
    seen = [(c, e.stopped.minibatch) for c, e in search_evaluations(results) if e.stopped]
    numbers = [number for _, number in seen]
    population = CmaEs(results_genes(results), weights=np.ones(2), seed=3, noisy=True)._population
    assert numbers == [(place // population) % 4 for place in range(len(numbers))]
    assert set(numbers) == {0, 1, 2, 3}
    for candidate, number in seen:
        evaluation = candidate.evaluations["search"]
        assert evaluation.cost.documents == ALL / 4
        ids = np.arange(40)[number * 10 : number * 10 + 10]
        assert len(results.record.document_scores(evaluation, "first/acc")) == len(ids)


def results_genes(results):
    first = next(c.genome for c in results.candidates if c.genome is not None)
    return Genes(tuple(Gene(f"g{i}", 0.0, 1.5, 0.5) for i in range(len(first.values))))


def test_seeds_and_middles_are_measured_in_full_and_only_they_are_results(results):
    full = [c for c, e in search_evaluations(results) if not e.stopped]
    middles = [c for c in full if c.origin == "optimizer"]
    assert len(middles) >= 3
    assert all(c.evaluations["search"].cost.documents == ALL for c in full)
    assert all(c.state == "measured" for c in [*results.front, results.winner])
    assert max(results.chooser.number(c, "search") for c in middles) > max(
        results.chooser.number(c, "search") for c in full if c.origin == "seed"
    )


def test_documents_are_saved(results):
    assert results.spent == 70
    assert results.costs["search"].documents < 70 * ALL / 2


def test_estimates_are_kept_apart_from_scores(results):
    estimated = [c for c in results.candidates if c.state == "stopped"]
    assert estimated
    for candidate in estimated:
        stop = candidate.evaluations["search"].stopped
        assert (stop.of, stop.rival, stop.chance) == (ALL, None, None)
        assert all(results.candidate(number).state == "measured" for number in stop.par)
        assert candidate.values("search", results.chooser.names) is None
        assert results.estimate(candidate, "search") == {}


def test_people_are_told(results):
    candidate = next(c for c in results.candidates if c.state == "stopped")
    assert "saw minibatch 0, 20 of 80 documents: estimates: first/acc" in (
        tables.candidate_table(results, candidate).caption.plain
    )
    shown = json.loads(json.dumps(tables.candidate_json(results, candidate)))["evaluations"]["search"]
    assert shown["stopped"]["minibatch"] == 0
    assert any(line.startswith(f"estimated   {results.stopped} from") for line in tables.status_lines(results))
    assert {"name": "estimated from some documents", "value": str(results.stopped)} in facts(results, [])["facts"]


def test_smooth_scores_guide_the_search_and_are_no_results(tmp_path):
    results = finish(searched(tmp_path, evaluation=SMOOTH))
    for candidate, evaluation in search_evaluations(results):
        scores = results.record.document_scores(evaluation, "first/acc")
        assert np.isin(scores, (0.0, 1.0)).all() == (evaluation.stopped is None)
        assert (candidate.state == "stopped") == (evaluation.stopped is not None)
    assert all(c.state == "measured" for c in [*results.front, results.winner])
    assert results.winner.origin == "optimizer"


@pytest.mark.parametrize("dies_after", [9, 26, 48])
def test_a_killed_search_continues_as_the_unbroken_one(tmp_path, results, dies_after):
    broken = searched(tmp_path)
    with pytest.raises(Stop), started(broken, watcher=DieAfter(dies_after)) as search:
        search.run()
    resumed = finish(broken)
    assert genomes(resumed) == genomes(results)
    for mine, other in zip(search_evaluations(resumed), search_evaluations(results), strict=True):
        assert mine[1].stopped == other[1].stopped
        assert mine[1].scores == other[1].scores


def test_asynchronous_workers_mix_generations_without_harm(tmp_path):
    pool = UnequalWorkers(FakeSpec()(), workers=7)
    with started(searched(tmp_path), pool=pool) as search:
        search.run()
        found = list(search.candidates.values())
    told = sorted((e.told_at, e.stopped.minibatch) for c in found if (e := c.evaluations.get("search")) and e.stopped)
    numbers = [number for _, number in told]
    assert numbers != sorted(numbers)
    assert set(numbers) == {0, 1, 2, 3}


def test_points_that_are_faster_than_every_seed_are_measured_in_full(tmp_path):
    pool = UnequalWorkers(FakeSpec()(), workers=12)
    pool.idle.reverse()  # the seeds go to the slowest
    with started(searched(tmp_path), pool=pool) as search:
        search.run()
        first = min(search.candidates.values(), key=lambda c: c.evaluations["search"].told_at)
    assert (first.origin, first.evaluations["search"].stopped) == ("optimizer", None)


# ------------------------------------------------------------------------- estimates


def best_known(levels):
    """One candidate in full, with (documents,) scores ``levels`` of task t."""
    scores = np.array(levels, dtype=float)
    evaluation = EvaluationRecord(
        0, "search", "d", {"t/acc": Measured(scores.mean(), None, None)}, None, None, 0, None, 0.0
    )
    best = BestKnown((Objective(task="t"),), lambda e, name: scores)
    best.see(CandidateRecord(0, 0, "optimizer", None, None, "", "r", (), None, 0.0, {"search": evaluation}))
    return best


class Numbered:
    """An optimizer whose points are all of one generation."""

    def __init__(self, generation):
        self.generation = generation

    def ask(self, count):
        return []

    def tell(self, observations):
        pass

    def generation_of(self, genome):
        return self.generation


def test_an_easy_minibatch_makes_nobody_better():
    """Of equals on documents of unequal difficulty, what is expected is equal, whichever part was seen."""
    levels = [1, 1, 1, 1, 1, 0, 0, 0]
    documents = Documents({"t": tuple(range(10, 18))})
    candidate = CandidateRecord(1, 1, "optimizer", None, Genome([0.5]), "", "", (), 0, 0.0)
    for generation in (0, 1, 2, 3):
        made = Minibatches(documents, TWO, (Objective(task="t"),), Numbered(generation), best_known(levels))
        task = made.task(candidate)
        seen = task.documents
        assert seen.ids["t"] == tuple(range(10, 14) if generation % 2 == 0 else range(14, 18))
        own = np.array([levels[number - 10] for number in seen.ids["t"]], dtype=float)
        measured = Evaluation("d", {"t/acc": Score(float(own.mean()), None, own)})
        estimate = made.estimated(task, measured)
        assert estimate.scores["t/acc"].value == pytest.approx(np.mean(levels))
        assert estimate.scores["t/acc"].standard_error > 0.0
        assert estimate.stopped.minibatch == generation % 2


@pytest.mark.parametrize("levels", [[1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]])
def test_smooth_scores_far_from_the_metrics_keep_their_order(levels):
    documents, settings = Documents({"t": tuple(range(8))}), MinibatchSettings(count=2, measure="probability")
    made = Minibatches(documents, settings, (Objective(task="t"),), Numbered(0), best_known(levels))
    task = made.task(CandidateRecord(1, 1, "optimizer", None, Genome([0.5]), "", "", (), 0, 0.0))
    easy = levels[0]
    probabilities = [np.full(4, share if easy else 1.0 - share) for share in (0.001, 0.002)]
    found = [made.estimated(task, Evaluation("d", {"t/acc": Score(float(p.mean()), None, p)})) for p in probabilities]
    low, high = (outcome.scores["t/acc"].value for outcome in found)
    assert high - low == pytest.approx(0.001 if easy else -0.001)


def test_what_belongs_to_no_generation_sees_all():
    documents = Documents({"t": tuple(range(8))})
    made = Minibatches(documents, TWO, (Objective(task="t"),), Numbered(None), best_known([1] * 8))
    middle = CandidateRecord(1, 1, "optimizer", None, Genome([0.5]), "", "", (), 0, 0.0)
    outcome = Evaluation("d", {"t/acc": Score(1.0, None, np.ones(8))})
    task = made.task(middle)
    assert task.documents == documents
    assert made.estimated(task, outcome) is outcome


# ------------------------------------------------------------------------- CMA-ES


def cma(**options):
    return CmaEs(Genes(tuple(Gene(f"x{i}", 0.0, 1.0, 0.3) for i in range(5))), weights=np.ones(1), seed=1, **options)


def test_the_middle_is_asked_for_now_and_then_and_teaches_nothing():
    def run(told_of_middles):
        optimizer, middles, asked = cma(centres=12), [], []
        for _ in range(60):
            genome = optimizer.ask(1)[0]
            asked.append(genome)
            middle = optimizer.generation_of(genome) is None
            middles += [genome] if middle else []
            value = told_of_middles if middle else -float(np.square(genome.values - 0.7).sum())
            optimizer.tell([Observation(genome, np.array([value]))])
        return optimizer, middles, asked

    optimizer, middles, asked = run(1000.0)
    assert isinstance(optimizer, HasGenerations)
    assert optimizer._population < cma()._population
    assert 60 // (2 * 12) <= len(middles) <= 60 // 12
    distances = [np.abs(middle.values - 0.7).sum() for middle in middles]
    assert distances[-1] < distances[0]
    assert run(-1000.0)[2] == asked


@pytest.mark.parametrize("count", [2, 4, 16])
def test_middles_take_a_quarter_of_the_documents_however_many_minibatches(count):
    points = points_between_middles(MinibatchSettings(count=count))
    assert 1 / (1 + points / count) == 0.25


def test_a_rehearsal_tells_how_many_points_see_all_documents():
    optimizer, full = cma(centres=12), 0
    for _ in range(300):
        genome = optimizer.ask(1)[0]
        full += optimizer.generation_of(genome) is None
        optimizer.tell([Observation(genome, np.array([genome.values[0]]))])
    share = share_in_full(cma(centres=12), "cma_es", objectives=1, points=10_000)
    assert 0.0 < share == pytest.approx(full / 300, abs=0.02)
    assert share_in_full(cma(), "cma_es", objectives=2, points=5) == 0.0


def test_a_noisy_population_is_half_as_large_again_and_a_smooth_one_smaller():
    assert cma(noisy=True)._population == int(1.5 * cma()._population)
    assert cma(noisy=True, population=7)._population == 7
    assert cma(centres=12)._population == int(0.7 * cma()._population)
    assert cma(centres=12, noisy=True)._population == cma(noisy=True)._population


# ------------------------------------------------------------------------- what it takes


class Timed:
    """Workers that take a hundredth of a second a document."""

    placements = ()

    def __init__(self):
        self.worker = FakeSpec()()

    def evaluate(self, recipe_json, ids):
        outcome = self.worker.evaluate(recipe_json, ids)
        return replace(outcome, cost=replace(outcome.cost, seconds=0.01 * Documents(dict(ids)).count))


def test_check_knows_what_minibatches_save(tmp_path, results, monkeypatch):
    monkeypatch.setattr(estimate, "prepare", lambda file, **_: problem(file))
    monkeypatch.setattr(estimate, "find_machine", lambda *_: Machine("cpu", 2, 1))
    monkeypatch.setattr(Problem, "worker_spec", lambda *_, **__: Timed)
    found = estimate.estimate(searched(tmp_path), say=lambda _: None)
    assert (found.seconds_per_evaluation, found.seconds_per_minibatch) == (0.01 * ALL, 0.01 * ALL / 4)
    spent = 0.01 * results.costs["search"].documents
    assert found.seconds_of_search * 2 == pytest.approx(spent, rel=0.05)
    assert "0.80 s and 0 tokens an evaluation (the base, measured now), 0.20 s on a minibatch" in found.lines()[-1]


# ------------------------------------------------------------------------- refusals


def test_one_way_to_see_fewer_documents():
    with pytest.raises(ValidationError, match="racing and minibatches both decide"):
        EvaluationSettings(racing=True, minibatches=4)


def test_optimizers_that_compare_all_times_are_refused(tmp_path):
    file = searched(tmp_path, optimizer={"kind": "nsga2", "seed": 0})
    with (
        pytest.raises(BadSearch, match=r"evaluation.minibatches: optimizer nsga2 compares candidates of all times"),
        started(file),
    ):
        pass


def test_too_few_documents_are_refused():
    documents = Documents({"many": tuple(range(40)), "few": tuple(range(7))})
    refuse_few_documents(documents, 3)
    with pytest.raises(BadSearch, match="4 minibatches need 8 search documents of each task, few has 7"):
        refuse_few_documents(documents, 4)


def test_the_random_search_beside_it_is_measured_in_full(tmp_path):
    assert random_variant(searched(tmp_path)).evaluation.minibatches is None
