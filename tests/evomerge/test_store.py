"""The record: what goes in comes out, one driver at a time, and databases that cannot be used say why."""

import multiprocessing
import os
import signal
import sqlite3
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from fakes import FakeSpec, problem, search_file
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluators.evaluation import Failure, FailureKind
from evomerge import database
from evomerge.errors import BadSearch, SearchBusy
from evomerge.records import pack_scores, unpack_scores
from evomerge.storage_url import parse
from evomerge.store import Store
from search_spaces.seeds import seeds


@pytest.fixture
def sqlite(tmp_path):
    """The storage URL of a SQLite file, for what only a file can suffer."""
    return f"sqlite:///{tmp_path}/record.db"


def new_search(storage):
    file = search_file("here", storage=storage)
    this = problem(file)
    store = Store(storage, create=True)
    return store.create("fake", file=file.model_dump(mode="json"), plan=this.plan()), this


def query(storage, statement):
    """The rows of one statement, past the store."""
    engine = sa.create_engine(parse(storage))
    with engine.begin() as connection:
        result = connection.execute(sa.text(statement))
        rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows


@given(arrays(np.float64, st.integers(0, 40), elements=st.sampled_from([0.0, 1.0])))
def test_binary_scores_pack_to_bits_and_back(values):
    data = pack_scores(values)
    assert unpack_scores(data).tolist() == values.tolist()
    assert len(data) == 5 + (len(values) + 7) // 8


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)))
def test_other_scores_pack_as_floats(values):
    assert unpack_scores(pack_scores(values)).tolist() == values.tolist()


def test_what_goes_in_comes_out(storage):
    record, this = new_search(storage)
    seed = list(seeds(this.space))[1]
    added = record.add_candidate(0, seed.recipe, origin="seed", name=seed.name, genome=seed.genome)
    outcome = FakeSpec()().evaluate(seed.recipe.to_json(), this.splits.search.ids)
    outcome = replace(outcome, truncated={"first": 3}, over_limits={"second": 2})
    record.add_evaluation(added, "search", outcome, documents_digest=this.splits.search.digest, told_at=0)
    failure = Failure(FailureKind.TIMED_OUT, "too slow")
    record.add_evaluation(added, "validation", failure, documents_digest=this.splits.validation.digest)
    (found,) = Store(storage).search("fake").candidates()
    assert (found.recipe, found.genome, found.name, found.state) == (seed.recipe, seed.genome, seed.name, "measured")
    evaluation = found.evaluations["search"]
    assert (evaluation.truncated, evaluation.over_limits) == ({"first": 3}, {"second": 2})
    assert (found.evaluations["validation"].truncated, found.evaluations["validation"].over_limits) == ({}, {})
    for name, score in outcome.scores.items():
        assert evaluation.scores[name].value == score.value
        assert evaluation.scores[name].standard_error == score.standard_error
        assert record.document_scores(evaluation, name).tolist() == score.documents.tolist()
    assert evaluation.scores["first/acc"].tie_break == 0.5
    assert found.evaluations["validation"].failure == failure


def test_the_latest_evaluation_of_a_split_counts_and_none_is_overwritten(storage):
    record, this = new_search(storage)
    added = record.add_candidate(0, next(seeds(this.space)).recipe, origin="seed", name="base")
    for message in ("first", "second"):
        failure = Failure(FailureKind.EXCEPTION, message)
        record.add_evaluation(added, "search", failure, documents_digest="d")
    (found,) = record.candidates()
    assert found.evaluations["search"].failure.message == "second"
    assert query(storage, "select count(*) from evaluations") == [(2,)]


def test_unknown_search_lists_the_known_ones(storage):
    new_search(storage)
    with pytest.raises(BadSearch, match=r"no search 'other' .*\(there: fake\)"):
        Store(storage).search("other")


def hold(storage, ready, release):
    with Store(storage, create=True).driving("fake"):
        ready.set()
        release.wait(30)


def test_a_second_driver_is_refused_and_the_first_goes_on(storage):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    first = context.Process(target=hold, args=(storage, ready, release))
    first.start()
    assert ready.wait(60)
    with pytest.raises(SearchBusy, match=rf"process {first.pid} on "), Store(storage).driving("fake"):
        pass
    with Store(storage).driving("another search"):
        pass
    assert first.is_alive()
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with Store(storage).driving("fake"):  # the system released the dead driver's lock
        pass


def test_a_missing_database_is_said_to_be_missing(sqlite):
    with pytest.raises(BadSearch, match="no such file; is this the folder"):
        Store(sqlite)


@pytest.mark.parametrize("url", ["not a url", "sqlite:////nowhere/at/all.db", "martian://host/db"])
def test_storages_that_cannot_be_opened(url):
    with pytest.raises(BadSearch, match="storage"):
        Store(url, create=True)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "text.db").write_text("this is not a database, only some text that is long enough to be read")
    with pytest.raises(BadSearch, match="no SQLite database"):
        Store(f"sqlite:///{tmp_path}/text.db", create=True)


def test_another_schema_version_is_refused(storage):
    new_search(storage)
    query(storage, "update evomerge_schema set version = 99")
    with pytest.raises(BadSearch, match="schema 99"):
        Store(storage)


def test_a_locked_database_is_waited_for_and_then_refused(sqlite, monkeypatch):
    record, this = new_search(sqlite)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    record = Store(sqlite).search("fake")
    blocker = sqlite3.connect(sqlite.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("begin exclusive")
    with pytest.raises(BadSearch, match="locked"):
        record.add_candidate(0, next(seeds(this.space)).recipe, origin="seed")
    blocker.execute("rollback")
    record.add_candidate(0, next(seeds(this.space)).recipe, origin="seed")


@contextmanager
def one_race():
    """The next statement on any SQLite database fails as one does when others begin at the same moment."""
    raised = []

    def race(_connection, _cursor, statement, *_):
        if not raised:
            raised.append(statement)
            error = sqlite3.OperationalError("locking protocol")
            error.sqlite_errorcode = sqlite3.SQLITE_PROTOCOL
            raise sa.exc.OperationalError(statement, None, error)

    sa.event.listen(sa.Engine, "before_cursor_execute", race)
    try:
        yield raised
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", race)


def test_a_file_that_cannot_be_locked_at_once_is_tried_again(sqlite):
    with one_race() as raised:
        opened = database.Database(sqlite, create=True)
    assert len(raised) == 1
    with one_race() as raised:
        assert opened.read(lambda connection: connection.execute(sa.text("SELECT 1")).scalar_one()) == 1
    assert len(raised) == 1
    with one_race() as raised, opened.driving("fake"):
        assert len(raised) == 1
        other = database.Database(sqlite, create=False)
        with one_race() as raised:
            assert "process" in other.driver("fake").owner
        assert len(raised) == 1
    assert opened.driver("fake") is None


def test_a_read_only_database_is_refused(sqlite):
    new_search(sqlite)
    path = sqlite.removeprefix("sqlite:///")
    with pytest.raises(BadSearch, match="read-only"):
        Store(f"sqlite:///file:{path}?mode=ro&uri=true", create=True).create("x", file={}, plan={})
