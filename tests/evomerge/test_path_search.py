"""Searches of paths on fakes: every form, continued after a kill, shown, and refused where it makes no sense."""

import optuna
import pytest
from fake_search import DieAfter, Stop, finish, genomes, started
from fakes import search_file
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from evomerge import optuna_view
from evomerge.config import parse
from evomerge.errors import BadSearch
from evomerge.hybrid import first_step, second_step
from evomerge.tables import candidate_json

PAIR = {"kind": "data_flow", "models": ["one", "two"]}
SEARCHES = {
    "edits": (PAIR, "cat_cma"),
    "edits-front": (PAIR | {"scales": "hop"}, "nsga2"),
    "paper": (PAIR | {"form": "paper", "repeats": 2}, "cma_es"),
    "swaps": (PAIR | {"form": "swaps", "blocks": 2}, "cat_cma"),
    "joint": ({"kind": "joint", "models": [{}, "two"]}, "cat_cma"),
}


def path_file(folder, name, **changes):
    space, kind = SEARCHES[name]
    return search_file(folder, **{"space": space, "optimizer": {"kind": kind, "seed": 3}, **changes})


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_finds_paths_and_its_view_shows_them(name, tmp_path):
    results = finish(path_file(tmp_path, name))
    assert results.state == "finished"
    asked = [c for c in results.candidates if c.origin == "optimizer"]
    assert {c.recipe.body.kind for c in asked} == {"path"}
    assert len({c.recipe_digest for c in asked}) > 10
    assert len(candidate_json(results, asked[0])["genome"]) == len(results.record.row.plan["genes"])
    storage = JournalStorage(JournalFileBackend(str(optuna_view.sync(results))))
    shown = [trial.params for trial in optuna.load_study(study_name="fake", storage=storage).trials if trial.params]
    assert len(shown) >= len(asked)
    assert all(len(params) <= optuna_view.MOST_PARAMETERS for params in shown)


@pytest.mark.parametrize("name", ["edits", "paper", "joint"])
def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path, name):
    (tmp_path / "whole").mkdir()
    whole = finish(path_file(tmp_path / "whole", name))
    file = path_file(tmp_path, name)
    with started(file, watcher=DieAfter(17)) as search, pytest.raises(Stop):
        search.run()
    assert genomes(finish(file)) == genomes(whole)


def test_a_hybrid_search_is_two_that_share_the_budget(tmp_path):
    space = {"kind": "hybrid", "merge": {"layer_groups": 2}, "models": ["two"], "share": 0.25}
    file = search_file(tmp_path, space=space, optimizer={"kind": "cat_cma", "seed": 5})
    first, second = first_step(file), second_step(file)
    assert (first.name, second.name) == ("fake.first", "fake")
    assert first.space == file.space.merge
    assert first.optimizer.seed == 5
    assert (first.budget.evaluations, second.budget.evaluations) == (10, 30)
    assert second.fixed_part() == file.fixed_part()


def test_what_makes_no_sense_is_refused(tmp_path):
    file = path_file(tmp_path, "edits")

    def refused(match, **changes):
        value = file.model_dump(mode="json") | changes
        with pytest.raises(BadSearch, match=match):
            parse(value, folder=tmp_path, where="x.yaml")

    refused("distance from the base compares all tensors", objectives=[{"task": "first"}, {"kind": "distance"}])
    refused(
        "unknown key 'space.model': did you mean 'models'. .known: form", space={"kind": "data_flow", "model": ["one"]}
    )
    with pytest.raises(ValueError, match="cma_es searches real genes only, but insert/two.0 is integer; use cat_cma"):
        finish(path_file(tmp_path, "edits", optimizer={"kind": "cma_es"}))
