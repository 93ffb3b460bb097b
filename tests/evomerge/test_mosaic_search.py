"""Searches by natural niches on fakes: parents, niches, and continuing by replay."""

import numpy as np
import pytest
from fake_search import DieAfter, Stop, finish, genomes, started
from fakes import search_file

from evomerge import optuna_view
from evomerge.config import parse
from evomerge.errors import BadSearch
from evomerge.niches import niche_history
from evomerge.results import Results
from evomerge.tables import candidate_json
from search_spaces.mosaic import Mosaic

MOSAIC = {"kind": "mosaic", "tile": 8, "chromosomes": {"attention": ["attn"]}}
NICHES = {"kind": "natural_niches", "seed": 3, "archive": 6, "warm_up": 4}


def mosaic_file(folder, **changes):
    return search_file(folder, **{"space": MOSAIC, "optimizer": NICHES, **changes})


@pytest.fixture
def results(tmp_path):
    return finish(mosaic_file(tmp_path))


def test_mosaics_are_searched_recorded_and_read_back(results):
    assert results.spent == 40
    assert results.state == "finished"
    assert all(isinstance(genome, Mosaic) for genome in genomes(results))
    kinds = {c.recipe.body.kind for c in results.candidates if c.origin == "optimizer"}
    assert kinds == {"mosaic"}
    shown = candidate_json(results, results.candidates[-1])
    assert shown["genome"] is None or len(shown["genome"]) == len(results.record.row.plan["genes"])


def test_parents_are_recorded(results):
    asked = [c for c in results.candidates if c.origin == "optimizer"]
    assert all(len(c.parents) == 2 for c in asked)
    names = {results.candidates[p].label for c in asked[:4] for p in c.parents}
    assert names == {"one", "two"}, "the warm-up crosses experts"
    assert any(results.candidates[p].origin == "optimizer" for c in asked for p in c.parents)
    assert all(p < c.number for c in asked for p in c.parents)
    assert candidate_json(results, asked[-1])["parents"] == list(asked[-1].parents)


@pytest.mark.parametrize("kind", ["natural_niches", "map_elites"])
@pytest.mark.parametrize("killed_after", [1, 9, 25])
def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path, kind, killed_after):
    (tmp_path / "whole").mkdir()
    optimizer = {"kind": kind, "seed": 3, "warm_up": 4}
    whole = finish(mosaic_file(tmp_path / "whole", optimizer=optimizer))
    file = mosaic_file(tmp_path, optimizer=optimizer)
    with started(file, watcher=DieAfter(killed_after)) as search, pytest.raises(Stop):
        search.run()
    continued = finish(file)
    assert genomes(continued) == genomes(whole)
    assert [c.parents for c in continued.candidates] == [c.parents for c in whole.candidates]


def test_niches_follow_from_the_record(results):
    history = niche_history(results)
    told = [c for c in results.candidates if "search" in c.evaluations]
    assert [point.evaluations for point in history] == list(range(1, len(told) + 1))
    assert all(len(point.members) <= 6 for point in history)
    assert history[-1].coverage >= history[0].coverage
    assert 0.0 <= history[-1].entropy <= 1.0
    assert 1.0 <= history[-1].competition <= 6.0


def test_the_archive_of_the_record_is_the_optimizers(tmp_path):
    file = mosaic_file(tmp_path)
    with started(file) as search:
        search.run()
        results = Results.of(search.record)
        inside = [search._by_genome[genome] for genome in search._optimizer.archive.genomes]
    assert list(niche_history(results)[-1].members) == inside


def test_niches_of_any_search_can_be_looked_at(tmp_path):
    history = niche_history(finish(search_file(tmp_path)))
    assert 0.0 < history[-1].coverage <= 1.0


def test_natural_niches_search_genes_too(tmp_path):
    results = finish(search_file(tmp_path, optimizer={"kind": "natural_niches", "seed": 1}))
    best = max(results.chooser.number(c, "search") for c in results.candidates)
    seeds = max(results.chooser.number(c, "search") for c in results.candidates if c.origin == "seed")
    assert best > seeds


def test_the_optuna_view_shows_mean_coefficients(results):
    path = optuna_view.sync(results)
    assert "mean/one/attention" in path.read_text()


def test_objectives_to_be_minimised_have_niches_as_well(tmp_path):
    objectives = [{"task": "first", "direction": "minimize"}, {"task": "second"}]
    results = finish(mosaic_file(tmp_path, objectives=objectives))
    assert np.isfinite([point.entropy for point in niche_history(results)]).all()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"optimizer": {"kind": "cma_es"}}, r"optimizer.kind: cma_es cannot search mosaics; use natural_niches or"),
        ({"optimizer": {"kind": "auto"}}, "auto cannot search mosaics"),
        ({"baselines": {"random_search": True}}, "mosaics cannot be drawn evenly"),
        ({"space": {"kind": "mosaic", "tile": 0}}, r"space.tile: Input should be greater than or equal to 1"),
        ({"space": {"kind": "mosaic", "operator": "ties"}}, r"unknown key 'space.operator' \(known: kind, tile"),
        ({"optimizer": {"kind": "natural_niches", "archive": 1}}, r"optimizer.archive: Input should be greater"),
        ({"optimizer": {"kind": "natural_niches", "sigma": 1}}, r"unknown key 'optimizer.sigma' \(known: seed, split"),
    ],
)
def test_mistakes_in_the_search_file_are_named(tmp_path, changes, complaint):
    value = mosaic_file(tmp_path).model_dump(mode="json", exclude_unset=True) | changes
    with pytest.raises(BadSearch, match=complaint):
        parse(value, folder=tmp_path, where="search.yaml")
