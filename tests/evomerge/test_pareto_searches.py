"""Searches with preferences, surrogates and portfolios, on fakes."""

import json

import numpy as np
import pytest
from fake_search import DieAfter, Stop, finish, genomes
from fakes import FakeSpec, problem, search_file

from evomerge import tables
from evomerge.archives.portfolio import portfolio
from evomerge.errors import BadSearch
from evomerge.optimizers.random_search import RandomSearch
from evomerge.optimizers.registry import make_optimizer
from evomerge.predicted import predict
from evomerge.problem import check_optimizer
from evomerge.runner import random_variant

FEW_GENES = {"layer_groups": 1}


def test_the_random_variant_of_any_search_is_a_random_search(tmp_path):
    file = random_variant(search_file(tmp_path))
    assert file.optimizer.kind == "random"
    assert isinstance(make_optimizer(file.optimizer, problem(file).setting()), RandomSearch)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("map")
    return finish(search_file(folder, optimizer={"kind": "map", "seed": 1}, space=FEW_GENES))


def test_predicted_front_is_computed_from_the_record_and_marked(mapped):
    found = predict(mapped)
    assert found.poor == []
    assert found.to_json()["evaluated"] is False
    assert len(found.genomes) == len(found.values) > 3
    assert json.loads(json.dumps(found.to_json())) == predict(mapped).to_json()
    assert "NOT EVALUATED" in str(found.table("fake").title)
    assert tables.status_json(mapped)["surrogates"] == found.r_squared
    assert any(line.startswith("surrogates  leave-one-out R^2") for line in tables.status_lines(mapped))
    measured = {tuple(genome.values) for genome in genomes(mapped)}
    assert not measured >= {tuple(row) for row in found.genomes.tolist()}  # predictions, not what was measured


def test_poor_surrogates_predict_no_front_and_say_so(tmp_path):
    file = search_file(tmp_path, optimizer={"kind": "map"}, space=FEW_GENES)

    class Noise(FakeSpec):
        def __call__(self):
            worker, rng = super().__call__(), np.random.default_rng(0)
            evaluate = worker.evaluate

            def noisy(*arguments):
                outcome = evaluate(*arguments)
                scores = {
                    n: type(s)(float(rng.random()), s.standard_error, s.documents) for n, s in outcome.scores.items()
                }
                return type(outcome)(outcome.documents_digest, scores, outcome.tie_breaks, outcome.cost)

            worker.evaluate = noisy
            return worker

    found = predict(finish(file, Noise()))
    assert found.poor
    assert len(found.genomes) == 0
    assert "no front is predicted and the design goes on" in found.line


def test_a_search_without_surrogates_predicts_nothing(tmp_path):
    with pytest.raises(BadSearch, match="its optimizer is cma_es, not map or bayesian_map"):
        predict(finish(search_file(tmp_path, budget={"evaluations": 12})))


@pytest.mark.parametrize("kind", ["map", "cycle_qd"])
def test_a_killed_search_continues_as_if_it_had_not_been(tmp_path, kind):
    def file(folder):
        folder.mkdir()
        return search_file(folder, optimizer={"kind": kind, "seed": 2}, space=FEW_GENES)

    broken = file(tmp_path / "broken")
    with pytest.raises(Stop):
        finish(broken, watcher=DieAfter(29))
    assert genomes(finish(broken)) == genomes(finish(file(tmp_path / "unbroken")))


def test_portfolio_of_a_record_is_what_the_archives_keep(tmp_path):
    results = finish(search_file(tmp_path, optimizer={"kind": "cycle_qd", "bins": 5}))
    values = np.array([results.chooser.maximised(c, "search") for c in results.candidates if c.origin != "baseline"])
    numbers = [c.number for c in results.candidates if c.origin != "baseline"]
    assert sorted(c.number for c in results.portfolio) == [numbers[i] for i in portfolio(values, 5)]


def test_the_preference_of_the_file_chooses_the_winner(tmp_path):
    names = ("first/acc", "second/acc")
    winners = {}
    for kind, preference in {
        "weighted": None,
        "chebyshev": {"kind": "chebyshev"},
        "constraint": {"kind": "constraint", "limits": {"second": 0.6}},
    }.items():
        (tmp_path / kind).mkdir()
        results = finish(search_file(tmp_path / kind, preference=preference, optimizer={"kind": "sobol", "seed": 3}))
        winners[kind] = results.winner.values("validation", names)
        finalists = [c.values("validation", names) for c in results.front]
        measured = np.array([values for values in finalists if values is not None])
        if kind == "chebyshev":
            assert winners[kind].min() == pytest.approx(measured.min(axis=1).max(), abs=0.03)
        if kind == "constraint" and (measured[:, 1] >= 0.6).any():
            assert winners[kind][1] >= 0.6
    assert winners["weighted"].mean() >= winners["chebyshev"].mean() - 1e-9


def test_an_optimizer_that_does_not_fit_is_a_mistake_said_before_anything_starts(tmp_path):
    settings = {"optimizer": {"kind": "map"}, "space": {"layer_groups": 4}}
    with pytest.raises(BadSearch, match="fits 45 coefficients for 8 genes .* at least 90, got 40"):
        check_optimizer(problem(search_file(tmp_path, **settings)))
    check_optimizer(problem(search_file(tmp_path, **settings, budget={"evaluations": 90})))
    check_optimizer(problem(search_file(tmp_path, optimizer={"kind": "auto"})))


def test_limits_must_name_objectives(tmp_path):
    with pytest.raises(ValueError, match="preference.limits: no objective 'third'"):
        search_file(tmp_path, preference={"kind": "constraint", "limits": {"third": 0.5}})
