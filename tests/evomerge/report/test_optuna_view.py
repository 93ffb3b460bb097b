"""The Optuna study says what the record says, however it came to be written."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from evomerge import optuna_journal, optuna_view
from evomerge.errors import BadSearch
from evomerge.optuna_journal import Journal
from evomerge.optuna_view import MOST_PARAMETERS, Live, export_study, journal_path, sync
from evomerge.results import Results
from evomerge.store import Store
from search_spaces.genes import Genome


def study_of(path: Path, name: str = "ja-math") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(path))))


def trials_of(path: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials in a journal that may be being begun."""
    try:
        return study_of(path).trials
    except KeyError:
        return []


def contents(study: optuna.Study) -> dict[int, tuple]:
    """What the view says of each candidate, whatever the order of the trials."""
    attrs = ("origin", "label", "recipe")
    return {
        t.user_attrs["candidate"]: (t.state, t.values, t.params, *(t.user_attrs[a] for a in attrs))
        for t in study.trials
    }


def test_study_equals_the_record(finished):
    results = finished.results
    study = study_of(sync(results))
    names = results.chooser.names
    assert study.metric_names == list(names)
    assert [d.name.lower() for d in study.directions] == ["maximize"] * len(names)
    searched = {c.number: c for c in results.candidates if "search" in c.evaluations}
    assert contents(study).keys() == searched.keys()
    genes = results.record.row.plan["genes"]
    for trial in study.trials:
        candidate = searched[trial.user_attrs["candidate"]]
        values = candidate.values("search", names)
        assert trial.state == (TrialState.FAIL if candidate.state == "failed" else TrialState.COMPLETE)
        assert trial.values == (None if values is None else values.tolist())
        expected = {} if candidate.genome is None else dict(zip(genes, candidate.genome.values.tolist(), strict=True))
        assert trial.params == expected
    failed = next(t for t in study.trials if t.state == TrialState.FAIL)
    assert failed.user_attrs["failure"] == "non_finite" and "NaN" in failed.user_attrs["message"]
    assert {t.user_attrs["candidate"] for t in study.best_trials} >= {c.number for c in results.front}


def test_minimised_objectives_keep_their_direction_and_sign(make_search):
    search = make_search(objectives=[{"task": "gsm8k_ja"}, {"task": "law", "direction": "minimize"}])
    search.add_seeds()
    study = study_of(sync(search.results))
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert all(trial.values[1] > 0 for trial in study.trials)


def test_sync_adds_only_what_is_new(make_search):
    search = make_search()
    search.add_seeds()
    path = sync(search.results)
    before = path.read_bytes()
    assert sync(search.results) == path and path.read_bytes() == before
    search.add_candidates(5)
    sync(search.results)
    assert path.read_bytes().startswith(before)
    assert len(study_of(path).trials) == len(search.results.candidates)


def test_a_journal_is_read_once_and_then_where_it_has_grown(make_search, monkeypatch):
    monkeypatch.setattr(optuna_view, "AT_ONCE", 3)
    read = []
    loads = json.loads
    monkeypatch.setattr(optuna_journal, "json", SimpleNamespace(loads=lambda line: read.append(line) or loads(line)))
    search = make_search()
    search.add_seeds()
    sync(search.results)
    journal = Journal(journal_path(search.record.store.storage))
    for count in (1, 5, 7):
        search.add_candidates(count)
        before = len(study_of(journal.path).trials)
        read.clear()
        optuna_view._sync(search.results, journal)
        if count > 1:  # the first time it reads all
            assert len(set(read)) == count
        assert len(study_of(journal.path).trials) == before + count == len(search.results.candidates)
    assert [t.user_attrs["candidate"] for t in study_of(journal.path).trials] == list(range(search.count))


def test_a_journal_that_was_replaced_is_read_anew(make_search):
    search = make_search()
    search.add_seeds()
    journal = Journal(journal_path(search.record.store.storage))
    optuna_view._sync(search.results, journal)
    before = contents(study_of(journal.path))
    for lose in (lambda: journal.path.unlink(), lambda: journal.path.write_bytes(b"")):
        lose()
        optuna_view._sync(search.results, journal)
        assert contents(study_of(journal.path)) == before


def test_what_others_add_to_a_journal_stays(finished, random_search):
    journal = Journal(journal_path(finished.record.store.storage))
    optuna_view._sync(finished.results, journal)
    sync(random_search.results)
    study_of(journal.path).set_user_attr("note", "of a person")
    optuna_view._sync(finished.results, journal)
    assert study_of(journal.path).user_attrs["note"] == "of a person"
    assert len(study_of(journal.path, random_search.file.name).trials) > 0


def test_scores_of_later_splits_are_always_complete(make_search):
    search = make_search()
    search.add_seeds()
    path = sync(search.results)
    search.conclude()
    sync(search.results)
    results = search.results
    attrs = study_of(path).user_attrs
    for split in ("validation", "test"):
        expected = {
            str(c.number): dict(zip(results.chooser.names, c.values(split, results.chooser.names), strict=True))
            for c in results.candidates
            if split in c.evaluations
        }
        assert attrs[split] == expected and expected
    path.unlink()
    trials = study_of(sync(results)).trials
    tested = {t.user_attrs["candidate"] for t in trials if "test" in t.user_attrs}
    assert tested == {c.number for c in results.candidates if {"search", "test"} <= c.evaluations.keys()}


def test_searches_share_a_journal(finished, random_search):
    path = sync(finished.results)
    assert sync(random_search.results) == path
    for search in (finished, random_search):
        searched = [c for c in search.results.candidates if "search" in c.evaluations]
        assert len(study_of(path, search.file.name).trials) == len(searched)


def test_deleted_view_comes_back(finished):
    path = sync(finished.results)
    before = contents(study_of(path))
    path.unlink()
    assert contents(study_of(sync(finished.results))) == before


def test_unreadable_journal_is_made_anew_with_all_searches(finished, random_search):
    path = sync(finished.results)
    sync(random_search.results)
    before = {name: contents(study_of(path, name)) for name in ("ja-math", "ja-math.random")}
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b'{"op_code": 4, nonsense\n', *lines[5:]]))
    sync(random_search.results)
    assert {name: contents(study_of(path, name)) for name in before} == before


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 1.0))
def test_journal_cut_anywhere_is_completed(small, share):
    path = sync(small)
    before = contents(study_of(path))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    sync(small)
    assert contents(study_of(path)) == before


@pytest.fixture
def small(make_search):
    """Results of a short search."""
    search = make_search(space={})
    search.add_seeds()
    search.add_candidates(4)
    return search.results


def test_a_new_search_of_the_same_name_replaces_the_old_one(small, store):
    path = sync(small)
    for name in ("evomerge.db", "evomerge.db-wal", "evomerge.db-shm"):
        path.with_name(name).unlink(missing_ok=True)
    store.close()
    fresh = type(store)(store.storage, create=True)
    again = fresh.create("ja-math", file=small.record.row.file, plan=small.record.row.plan)
    assert study_of(sync(Results.of(again))).trials == []
    fresh.close()


def test_many_genes_are_shown_as_means_per_knob_and_expert(make_search):
    space = {"operator": "ties", "layer_groups": 12, "tensor_groups": ["mlp"], "weight": [0.0, 1.3]}
    search = make_search(space=space)
    genes = search.space.genes
    assert len(genes) > MOST_PARAMETERS
    values = np.random.default_rng(0).uniform(genes.low, genes.high)
    for genome in (Genome(values), Genome(genes.high)):
        search.add(search.space.decode(genome), origin="optimizer", genome=genome)
    mixed, top = study_of(sync(search.results)).trials
    assert set(top.params) == {f"mean {k}/{e}" for k in ("weight", "density") for e in ("math", "coder", "doctor")}
    named = dict(zip(genes.names, values, strict=True))
    for name, value in mixed.params.items():
        mine = [v for gene, v in named.items() if gene.startswith(name.removeprefix("mean ") + "/")]
        assert value == pytest.approx(np.mean(mine))
    assert top.params["mean weight/math"] == 1.3


@pytest.mark.parametrize(
    ("storage", "name"),
    [
        ("sqlite:///some/evomerge.db", "some/evomerge.optuna.journal"),
        ("sqlite:////abs/x.sqlite", "/abs/x.optuna.journal"),
        ("postgresql://ann:secret@host/merges", "merges.optuna.journal"),
    ],
)
def test_journal_lies_beside_the_database(storage, name):
    assert journal_path(storage) == Path(name)


@pytest.mark.parametrize("storage", ["sqlite://", "sqlite:///:memory:"])
def test_database_without_a_name_has_no_view(storage):
    with pytest.raises(BadSearch, match="needs a database with a name"):
        journal_path(storage)


def test_a_live_view_follows_the_record(make_search, monkeypatch):
    monkeypatch.setattr(optuna_view, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(optuna_view, "SHARE", 1e9)
    search = make_search(space={})
    search.add_seeds()
    with closing(Live(search.record)) as live:
        path = journal_path(search.record.store.storage)
        search.add_candidates(6, fail_every=3)
        live.evaluated(search.results.candidate(search.count - 1), "search")
        while not path.exists() or len(trials_of(path)) < search.count:
            assert live._thread.is_alive()
            time.sleep(0.01)
    assert not live._thread.is_alive()
    before = path.read_bytes()
    sync(search.results)
    assert path.read_bytes() == before


def test_a_live_view_that_fails_leaves_the_search_alone(make_search, monkeypatch, caplog):
    monkeypatch.setattr(optuna_view, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(optuna_view, "SHARE", 1e9)
    search = make_search(space={})
    search.add_seeds()
    with closing(Live(search.record)) as live:
        monkeypatch.setattr(optuna_view, "_sync", lambda *_: 1 / 0)
        live.evaluated(search.results.candidate(0), "search")
        live._thread.join()
    assert "the Optuna view is not live any more: division by zero" in caplog.text


@pytest.mark.parametrize("to", ["elsewhere.journal", "sqlite:///{folder}/study.db"])
def test_a_study_is_exported_anywhere_and_completed(small, make_search, tmp_path, monkeypatch, to):
    monkeypatch.chdir(tmp_path)
    to = to.format(folder=tmp_path)
    journal = sync(small)
    export_study(small, to)
    export_study(small, to)
    opened = JournalStorage(JournalFileBackend(to)) if "://" not in to else to
    assert contents(optuna.load_study(study_name="ja-math", storage=opened)) == contents(study_of(journal))


def test_a_place_that_cannot_be_written_is_said_on_one_line(small, tmp_path):
    with pytest.raises(BadSearch, match="nowhere/x.journal: cannot be written: "):
        export_study(small, str(tmp_path / "nowhere" / "x.journal"))
    with pytest.raises(BadSearch, match=r"postgresql://ann:\*\*\*@127.0.0.1:9/x: cannot be written: ") as caught:
        export_study(small, "postgresql://ann:secret@127.0.0.1:9/x")
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_beside_a_record_in_postgresql(make_search, postgres, tmp_path, monkeypatch):
    like = make_search(space={})
    monkeypatch.chdir(tmp_path)
    storage = postgres.new_database()
    with closing(Store(storage, create=True)) as store:
        search = type(like)(store, like.file)
        search.add_seeds()
        journal = sync(search.results)
        assert journal.name.endswith(".optuna.journal") and journal.resolve().parent == tmp_path
        study = postgres.new_database()
        export_study(search.results, study)
        url = study.replace("postgresql://", "postgresql+psycopg://")
        assert contents(optuna.load_study(study_name="ja-math", storage=url)) == contents(study_of(journal))


def test_optuna_draws_it(finished):
    visualization = importlib.import_module("optuna.visualization")
    study = study_of(sync(finished.results))
    figure = visualization.plot_pareto_front(study, targets=lambda t: t.values[:2], target_names=["a", "b"])
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert sum(len(drawn.x) for drawn in figure.data) == len(complete)


def test_sync_is_silent_and_leaves_optunas_logging_alone(finished, capfd, recwarn):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    sync(finished.results)
    assert capfd.readouterr() == ("", "") and not recwarn.list
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


@pytest.mark.slow
def test_optuna_dashboard_serves_it(finished):
    pytest.importorskip("optuna_dashboard")
    path = sync(finished.results)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), str(path), "--host", "127.0.0.1"]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        page = fetch(f"http://127.0.0.1:{port}/dashboard/", server)
        studies = fetch(f"http://127.0.0.1:{port}/api/studies", server)
    finally:
        server.kill()
        server.wait()
    assert "<html" in page and '"ja-math"' in studies


def fetch(url: str, server: subprocess.Popen[bytes]) -> str:
    """The text at ``url``, waiting as long as the server is starting."""
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError(f"{url} never answered")
