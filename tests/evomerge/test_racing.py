"""Racing in a search: who is raced against, what is recorded, and that the winner of a full evaluation is found."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from fake_search import DieAfter, Stop, finish, genomes, started
from fakes import search_file

from evaluators.blockwise import BlockwiseEvaluator
from evaluators.evaluation import Cost, Documents, Evaluation, Score
from evaluators.objective import Objective, RacingSettings
from evomerge import optuna_view, tables
from evomerge.archives import pareto
from evomerge.best_known import BestKnown
from evomerge.errors import BadSearch
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.nsga2 import Nsga2
from evomerge.optimizers.optuna_samplers import gp, tpe
from evomerge.optimizers.preference import Preference
from evomerge.racing import Referee, refuse_unraceable
from evomerge.records import CandidateRecord, EvaluationRecord, Measured
from evomerge.report_facts import facts
from evomerge.store import Store
from search_spaces.genes import Gene, Genes, Genome

RECORDED = Path(__file__).resolve().parent.parent / "data" / "demo_scores.npz"
RACING = {"racing": True}


# ------------------------------------------------------------------------- the ordering guarantee


@dataclass(frozen=True)
class ScoreTable:
    """An evaluator over recorded scores, (candidates, objectives, documents); its models are candidates' numbers."""

    scores: np.ndarray

    def evaluate(self, model, documents):
        rows = {f"{task}/acc": self.scores[model, int(task), list(ids)] for task, ids in documents.ids.items()}
        scores = {name: Score(float(row.mean()), None, row) for name, row in rows.items()}
        return Evaluation(documents.digest, scores, cost=Cost(documents=documents.count))


def recorded_table():
    file = np.load(RECORDED)
    shape = tuple(file["shape"])
    return np.unpackbits(file["bits"], count=int(np.prod(shape))).reshape(shape).astype(float)


def item_response_table(seed, *, candidates=300, documents=100):
    """Two-parameter logistic responses; abilities of a candidate go together over the tasks, as experts' do not."""
    generator = np.random.default_rng(seed)
    ability = generator.normal(0.0, 0.7, (candidates, 3, 1)) + generator.normal(0.0, 0.7, (candidates, 1, 1))
    sharpness, difficulty = generator.lognormal(0.3, 0.4, (3, documents)), generator.normal(0.3, 1.2, (3, documents))
    chances = 1.0 / (1.0 + np.exp(-sharpness * (ability - difficulty)))
    return (generator.random(chances.shape) < chances).astype(float)


def race_all(table, *, single_number):
    """Evaluate the table's candidates in order, racing; return the numbers measured in full and the documents seen."""
    objectives = tuple(Objective(task=str(k)) for k in range(table.shape[1]))
    documents = Documents({o.task: tuple(range(table.shape[2])) for o in objectives})
    evaluator = ScoreTable(table)
    blockwise = BlockwiseEvaluator(evaluator, objectives)
    best = BestKnown(objectives, lambda e, name: table[e.id, int(name.split("/")[0])])
    referee = Referee(best, RacingSettings(), single_number=single_number)
    full, seen = [], 0
    for number in range(len(table)):
        race = referee.race()
        outcome = blockwise.evaluate(number, documents, race) if race else evaluator.evaluate(number, documents)
        seen += outcome.cost.documents
        if outcome.stopped is None:
            full.append(number)
        best.see(candidate_of(number, outcome))
    return full, seen


def candidate_of(number, outcome):
    measured = {name: Measured(score.value, None, None) for name, score in outcome.scores.items()}
    evaluation = EvaluationRecord(
        number, "search", "d", measured, None, outcome.cost, number, None, 0.0, stopped=outcome.stopped
    )
    return CandidateRecord(
        number, number, "optimizer", None, None, "", str(number), (), None, 0.0, {"search": evaluation}
    )


def shuffled(table, seed):
    generator = np.random.default_rng(seed)
    documents = generator.permuted(np.tile(np.arange(table.shape[2]), (table.shape[1], 1)), axis=1)
    return np.take_along_axis(table[generator.permutation(len(table))], documents[None], axis=2)


def repeats_that_find_the_winner(tables_of_seeds):
    found, saved = [], []
    for table in tables_of_seeds:
        full, seen = race_all(table, single_number=True)
        joint = table.mean(axis=(1, 2))
        found.append(joint[full].max() == joint.max())
        saved.append(table.size / seen)
    return np.mean(found), np.mean(saved)


@pytest.mark.slow
def test_the_winner_of_a_full_evaluation_is_found_on_recorded_scores():
    table = recorded_table()
    share, saved = repeats_that_find_the_winner(shuffled(table, seed) for seed in range(40))
    assert share >= 0.95
    assert saved > 2.5


@pytest.mark.slow
def test_the_winner_of_a_full_evaluation_is_found_on_item_responses():
    share, saved = repeats_that_find_the_winner(item_response_table(seed) for seed in range(40))
    assert share >= 0.95
    assert saved > 2.5


def test_the_search_that_was_recorded_finds_its_winner_with_fewer_documents():
    table = recorded_table()[:250]
    full, seen = race_all(table, single_number=True)
    assert table[full].mean(axis=(1, 2)).max() == table.mean(axis=(1, 2)).max()
    assert seen < table.size / 2


def test_a_race_for_the_front_keeps_the_front():
    """Of the points of the true front, few are lost, and those only just in front."""
    table = shuffled(recorded_table(), 0)[:200]
    full, seen = race_all(table, single_number=False)
    values = table.mean(axis=2)
    reference = values.min(axis=0) - 0.01
    kept = pareto.hypervolume(values[full][pareto.front(values[full])], reference)
    assert kept >= 0.98 * pareto.hypervolume(values[pareto.front(values)], reference)
    assert seen < table.size


# ------------------------------------------------------------------------- races


def referee_of(rows, **options):
    objectives = (Objective(task="0"), Objective(task="1", direction="minimize", weight=3.0))
    table = np.repeat(np.array(rows).reshape(-1, 2, 1), 10, axis=2)
    best = BestKnown(objectives, lambda e, name: table[e.id, int(name.split("/")[0])])
    documents = Documents({"0": tuple(range(10)), "1": tuple(range(10))})
    for number in range(len(rows)):
        best.see(candidate_of(number, ScoreTable(table).evaluate(number, documents)))
    return Referee(best, RacingSettings(), **options), best


def test_nobody_to_race_against_is_no_race():
    assert referee_of([], single_number=True)[0].race() is None


def test_one_number_races_against_the_best_one():
    race = referee_of([(0.5, 0.5), (0.9, 0.4), (0.1, 0.9)], single_number=True)[0].race()
    assert [rival.candidate for rival in race.rivals] == [1]
    assert race.rivals[0].values.tolist() == [0.9, 0.4]
    assert race.criteria.tolist() == [[0.25, -0.75]]
    assert race.par_of == (1, 0, 2)
    assert race.par["0/acc"].scores == pytest.approx(np.full(10, 0.5))
    assert (race.par["1/acc"].low, race.par["1/acc"].high) == (0.4, 0.9)


def test_others_race_against_the_front():
    race = referee_of([(0.5, 0.1), (0.9, 0.4), (0.4, 0.9)], single_number=False)[0].race()
    assert sorted(rival.candidate for rival in race.rivals) == [0, 1]
    assert race.criteria.tolist() == [[1.0, 0.0], [0.0, -1.0]]


@pytest.mark.parametrize("single_number", [True, False])
def test_a_referee_forgets_who_cannot_set_a_race(single_number):
    """The cost of a race stays flat as the record grows; par and rivals are those among all."""
    rows = np.random.default_rng(0).random((2500, 2)).tolist()
    made, best = referee_of(rows, single_number=single_number)
    assert len(best) < 1000
    race, joint = made.race(), [one - 3.0 * other for one, other in rows]
    assert list(race.par_of) == np.argsort(np.negative(joint), kind="stable")[:8].tolist()
    front = pareto.front(np.array(rows) * [1.0, -1.0]).tolist()
    assert sorted(rival.candidate for rival in race.rivals) == (
        list(race.par_of[:1]) if single_number else sorted(front)
    )


def test_estimates_and_answers_from_the_record_set_no_race():
    made, best = referee_of([(0.5, 0.5)], single_number=True)
    better = candidate_of(7, ScoreTable(np.ones((8, 2, 10))).evaluate(7, Documents({"0": (0,), "1": (0,)})))
    evaluation = better.evaluations["search"]
    best.see(replace(better, evaluations={"search": replace(evaluation, answered_from=3)}))
    best.see(replace(better, evaluations={"search": replace(evaluation, stopped=object())}))
    best.see(replace(better, evaluations={}))
    assert [rival.candidate for rival in made.race().rivals] == [0]


def test_which_optimizers_climb_one_number():
    genes = Genes((Gene("x", 0.0, 1.0, 0.5),))
    weights = np.ones(2)
    assert CmaEs(genes, weights=weights, seed=0).single_number
    assert gp(genes, preference=Preference(weights), seed=0).single_number
    assert not tpe(genes, objectives=2, seed=0).single_number
    assert not getattr(Nsga2(genes, seed=0), "single_number", False)


def test_optimizers_that_need_every_document_are_refused():
    class Needy:
        needs_documents = True

    with pytest.raises(BadSearch, match=r"evaluation.racing: optimizer needy needs every document"):
        refuse_unraceable(Needy(), "needy")


def test_nsga2_puts_estimates_behind_what_was_measured():
    optimizer = Nsga2(Genes((Gene("x", 0.0, 1.0, 0.5),)), seed=0, population=4)
    points = [Genome([0.1 * i]) for i in range(6)]
    measured = [Observation(p, np.array([0.1, 0.1]), seed=True) for p in points[:3]]
    optimizer.tell([Observation(p, np.array([0.9, 0.9]), estimated=True) for p in points[3:]] + measured)
    kept = [(member.genome, member.estimated) for member in sorted(optimizer._members, key=lambda m: m.estimated)]
    assert [genome for genome, _ in kept[:3]] == points[:3]
    assert [estimated for _, estimated in kept] == [False, False, False, True]


# ------------------------------------------------------------------------- whole searches


def stopped(results):
    return [c for c in results.candidates if c.state == "stopped"]


@pytest.mark.parametrize("kind", ["cma_es", "nsga2", "tpe", "random"])
def test_a_racing_search_saves_documents_and_keeps_estimates_apart(tmp_path, kind):
    file = search_file(tmp_path, evaluation=RACING, optimizer={"kind": kind, "seed": 3})
    results = finish(file)
    left = stopped(results)
    assert left
    assert results.spent == 40
    assert results.stopped == len([c for c in left if c.evaluations["search"].answered_from is None])
    assert results.costs["search"].documents < 40 * 80
    for candidate in left:
        stop = candidate.evaluations["search"].stopped
        assert stop.documents == candidate.evaluations["search"].cost.documents or stop.of == 80
        assert all(results.candidate(number).state == "measured" for number in (stop.rival, *stop.par))
        assert candidate.values("search", results.chooser.names) is None
        assert results.estimate(candidate, "search") == {}
        assert candidate not in results.front
        assert set(candidate.evaluations) == {"search"}
    assert all(c.state == "measured" for c in results.candidates if c.origin == "seed")
    assert results.winner.state == "measured"


def test_without_racing_nothing_is_stopped(tmp_path):
    results = finish(search_file(tmp_path))
    assert not stopped(results)
    assert results.costs["search"].documents == 40 * 80


@pytest.mark.parametrize("dies_after", [6, 17, 30])
def test_a_killed_racing_search_continues_as_the_unbroken_one(tmp_path, dies_after):
    unbroken = finish(search_file(tmp_path, name="unbroken", evaluation=RACING))
    broken = search_file(tmp_path, name="broken", evaluation=RACING)
    with pytest.raises(Stop), started(broken, watcher=DieAfter(dies_after)) as search:
        search.run()
    resumed = finish(broken)
    assert genomes(resumed) == genomes(unbroken)
    assert [c.state for c in resumed.candidates] == [c.state for c in unbroken.candidates]
    stops = [[c.evaluations["search"].stopped for c in stopped(results)] for results in (resumed, unbroken)]
    assert stops[0] == stops[1]


def test_a_repeated_recipe_takes_over_the_estimate(tmp_path):
    space = {"weight": [0.5, 0.5000000000000001], "layer_groups": 2}
    budget = {"evaluations": 14, "finalists": 5}
    results = finish(search_file(tmp_path, space=space, budget=budget, evaluation={"racing": {"threshold": 0.49}}))
    sources = {c.evaluations["search"].id: c for c in results.candidates if "search" in c.evaluations}
    pairs = [(c, sources[e.answered_from]) for c in stopped(results) if (e := c.evaluations["search"]).answered_from]
    assert pairs
    for candidate, source in pairs:
        assert candidate.evaluations["search"].stopped == source.evaluations["search"].stopped


def test_what_people_and_programs_are_shown_of_a_stopped_candidate(tmp_path):
    results = finish(search_file(tmp_path, evaluation=RACING))
    candidate = stopped(results)[0]
    shown = json.loads(json.dumps(tables.candidate_json(results, candidate)))["evaluations"]["search"]
    assert set(shown) == {"stopped", "estimates"}
    assert set(shown["estimates"]["first/acc"]) == {"value", "standard_error"}
    caption = tables.candidate_table(results, candidate).caption.plain
    assert "stopped after" in caption
    assert "estimates: first/acc" in caption
    assert any(line.startswith("estimated") for line in tables.status_lines(results))
    assert {"name": "estimated from some documents", "value": str(results.stopped)} in facts(results, [])["facts"]


def test_optuna_sees_a_pruned_trial_without_values(tmp_path):
    results = finish(search_file(tmp_path, evaluation=RACING))
    path = optuna_view.sync(results)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    trials = {t.user_attrs["candidate"]: t for t in optuna.load_study(study_name="fake", storage=storage).trials}
    for candidate in stopped(results):
        assert trials[candidate.number].state == optuna.trial.TrialState.PRUNED
        assert trials[candidate.number].values is None


def test_a_record_of_the_first_schema_is_brought_up_to_date(tmp_path):
    finish(search_file(tmp_path))
    engine = sa.create_engine(f"sqlite:///{tmp_path}/evomerge.db")
    with engine.begin() as connection:
        for column in ("stopped", "truncated", "over_limits"):
            connection.execute(sa.text(f"alter table evaluations drop column {column}"))
        connection.execute(sa.text("update evomerge_schema set version = 1"))
    engine.dispose()
    record = Store(f"sqlite:///{tmp_path}/evomerge.db").search("fake")
    assert all(e.stopped is None for c in record.candidates() for e in c.evaluations.values())
    assert finish(search_file(tmp_path, budget={"evaluations": 50, "finalists": 5})).spent == 50
