"""The record on a real PostgreSQL server: restarts, lost connections, lost locks; never two writers, nothing twice."""

import logging
import threading

import pytest
import sqlalchemy as sa
from fake_search import finish, genomes, started
from fakes import problem, search_file

from evaluators.evaluation import Failure, FailureKind
from evomerge import database
from evomerge.errors import BadSearch, SearchBusy
from evomerge.store import Store
from evomerge.watcher import Silent
from search_spaces.seeds import seeds

pytestmark = pytest.mark.slow


@pytest.fixture
def storage(postgres):
    return postgres.new_database()


@pytest.fixture
def search(storage):
    this = problem(search_file("here", storage=storage))
    store = Store(storage, create=True)
    with store.driving("fake"):
        yield store.create("fake", file=this.file.model_dump(mode="json"), plan=this.plan())
    store.close()


def add(search, number):
    recipe = next(seeds(problem(search_file("here")).space)).recipe
    return search.add_candidate(number, recipe, origin="baseline", name=f"number {number}")


def end_connections(postgres, storage):
    """End all other connections to a database: the locks that they held are free."""
    name = storage.rpartition("/")[2]
    postgres.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    )


def test_a_restart_of_the_server_is_waited_for(postgres, search, caplog):
    add(search, 0)
    postgres.kill()
    later = threading.Timer(1.5, postgres.start)
    later.start()
    with caplog.at_level(logging.WARNING):
        add(search, 1)
    later.join()
    assert [candidate.number for candidate in search.candidates()] == [0, 1]
    assert "trying for 120 s" in caplog.text
    assert "correct-horse" not in caplog.text
    assert search.store.driver("fake").owner.startswith("process ")  # the lock was taken again


def test_readers_wait_for_a_restart_too(postgres, search):
    add(search, 0)
    postgres.restart()
    assert len(search.candidates()) == 1


def test_a_server_that_stays_away_is_given_up(postgres, search, monkeypatch):
    monkeypatch.setattr(database, "RECONNECT_SECONDS", 0.5)
    postgres.kill()
    try:
        with pytest.raises(BadSearch, match="is the server running") as error:
            add(search, 0)
        assert "correct-horse" not in str(error.value)
    finally:
        postgres.start()
    add(search, 0)


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_of_unknown_outcome_is_checked_and_not_repeated_blindly(search, committed):
    """The connection is cut on commit, after or before the server has done it."""
    added = add(search, 0)
    cuts = []

    def cut(connection):
        if not cuts:
            raw = connection.connection.dbapi_connection
            if committed:
                raw.commit()
            raw.close()
            cuts.append(raw)

    sa.event.listen(sa.Engine, "commit", cut)
    try:
        failure = Failure(FailureKind.EXCEPTION, "once")
        done = search.add_evaluation(added, "search", failure, documents_digest="d", told_at=0)
    finally:
        sa.event.remove(sa.Engine, "commit", cut)
    assert cuts
    count = sa.text("SELECT count(*), max(id) FROM evaluations")
    counted = search.store.database.read(lambda c: tuple(c.execute(count).one()))
    assert counted == (1, done.evaluations["search"].id)


def test_a_lost_lock_is_taken_again_before_anything_is_written(postgres, storage, search):
    end_connections(postgres, storage)
    assert search.store.driver("fake") is None
    add(search, 0)
    assert search.store.driver("fake") is not None
    with pytest.raises(SearchBusy), Store(storage).driving("fake"):
        pass


@pytest.mark.parametrize("other_is_alive", [True, False])
def test_a_driver_whose_search_was_taken_over_writes_no_more(postgres, storage, search, other_is_alive):
    end_connections(postgres, storage)
    other = Store(storage)
    with other.driving("fake"):
        theirs = add(other.search("fake"), 0)
        if other_is_alive:
            with pytest.raises(SearchBusy, match="run by another process"):
                add(search, 0)
    with pytest.raises(SearchBusy, match="run by another process"):
        add(search, 1)
    other.close()
    assert search.candidates() == [theirs]


def test_a_connection_that_only_the_server_still_believes_in_is_ended(search):
    """As after a partition of the network: the server keeps the old session and its lock."""
    locks = search.store.database.locks
    forgotten, locks._connection = locks._connection, None  # cut, and nobody told the server
    add(search, 0)
    assert len(search.candidates()) == 1
    with pytest.raises(sa.exc.OperationalError, match="terminating connection"):
        forgotten.execute(sa.text("SELECT 1"))
    forgotten.close()


def test_searches_of_one_driver_are_locked_together_and_let_go_one_by_one(storage):
    mine, other = Store(storage, create=True), Store(storage, create=True)
    with mine.driving("one"):
        with mine.driving("two"):
            for name in ("one", "two"):
                with pytest.raises(SearchBusy), other.driving(name):
                    pass
        with other.driving("two"), pytest.raises(SearchBusy), other.driving("one"):
            pass
    assert mine.driver("one") is None
    mine.close()
    other.close()


class Restarts(Silent):
    """Restarts the server after some evaluations."""

    def __init__(self, postgres, at):
        self.postgres, self.at, self.count = postgres, at, 0

    def evaluated(self, candidate, split):
        self.count += 1
        if self.count in self.at:
            self.postgres.restart()


def test_a_search_goes_through_restarts_as_if_there_were_none(postgres, storage, tmp_path):
    unbroken = finish(search_file(tmp_path))
    broken = finish(search_file(tmp_path, storage=storage), watcher=Restarts(postgres, at=(3, 20, 45)))
    assert genomes(broken) == genomes(unbroken)
    assert broken.winner.recipe_digest == unbroken.winner.recipe_digest
    evaluations = [c.evaluations.keys() for c in broken.candidates]
    assert evaluations == [c.evaluations.keys() for c in unbroken.candidates]
    rows = broken.record.store.database.read(lambda c: c.execute(sa.text("SELECT count(*) FROM evaluations")).scalar())
    assert rows == sum(map(len, evaluations))


def test_the_record_holds_no_password(storage, tmp_path):
    with started(search_file(tmp_path, storage=storage)) as search:
        assert search.record.row.file["storage"] == storage.replace("correct-horse-battery", "***")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("correct-horse", "wrong"), "PGPASSWORD or ~/.pgpass"),
        (("record_", "nothing_"), "createdb"),
        (("127.0.0.1", "nowhere.invalid"), "host"),
    ],
)
def test_what_is_wrong_with_a_server_is_said_at_once(storage, change, expected):
    with pytest.raises(BadSearch, match=expected) as error:
        Store(storage.replace(*change), create=True)
    assert "horse" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failure_with_characters_that_no_database_takes(search):
    done = search.add_evaluation(
        add(search, 0), "search", Failure(FailureKind.EXCEPTION, "nul \0, half \udc80"), documents_digest="d"
    )
    assert done.evaluations["search"].failure.message == r"nul \x00, half \udc80"
    assert search.candidates()[0].evaluations == done.evaluations
