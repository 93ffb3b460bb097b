"""Records of older versions are brought up to date, whoever opens them, and however many do."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from fakes import FakeSpec, problem, search_file

from evomerge.losses import ATTEMPTS, Losses
from evomerge.schema import SCHEMA_VERSION
from evomerge.storage_url import parse
from evomerge.store import Store
from search_spaces.seeds import seeds

DOWN = {  # what makes a record of one version out of one of the next
    1: ("ALTER TABLE evaluations DROP COLUMN stopped",),
    2: ("ALTER TABLE evaluations DROP COLUMN truncated", "ALTER TABLE evaluations DROP COLUMN over_limits"),
    3: ("DROP TABLE drivers",),
    4: ("DROP INDEX candidates_by_origin",),
    5: ("DROP TABLE losses", "DROP TABLE crews"),
    6: (
        "DROP INDEX evaluations_by_search",
        "CREATE INDEX evaluations_by_search ON evaluations (search_id, split)",
    ),
}


def go_back(storage, version):
    engine = sa.create_engine(parse(storage))
    with engine.begin() as connection:
        for step in range(SCHEMA_VERSION - 1, version - 1, -1):
            for statement in DOWN[step]:
                connection.execute(sa.text(statement))
        connection.execute(sa.text(f"UPDATE evomerge_schema SET version = {version}"))
    engine.dispose()


def measured_search(storage):
    this = problem(search_file("here", storage=storage))
    store = Store(storage, create=True)
    record = store.create("fake", file=this.file.model_dump(mode="json"), plan=this.plan())
    seed = next(seeds(this.space))
    added = record.add_candidate(0, seed.recipe, origin="seed", name=seed.name, genome=seed.genome)
    outcome = FakeSpec()().evaluate(seed.recipe.to_json(), this.splits.search.ids)
    record.add_evaluation(added, "search", outcome, documents_digest=this.splits.search.digest, told_at=0)
    found = record.candidates()
    store.close()
    return found


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_an_older_record_keeps_what_it_holds(storage, version):
    before = measured_search(storage)
    go_back(storage, version)
    store = Store(storage)
    assert store.search("fake").candidates() == before
    with store.driving("fake"):
        assert store.driver("fake").owner.startswith("process ")
        for _ in range(ATTEMPTS):
            Losses(store.search("fake")).add(0, "search", "killed")
    assert "killed" in Losses(store.search("fake")).quarantined(0, "search")
    store.close()


@pytest.mark.parametrize("version", [None, 1])
def test_many_may_open_it_at_the_same_time(storage, version):
    if version:
        measured_search(storage)
        go_back(storage, version)

    def names(_):
        store = Store(storage, create=True)
        found = [row.name for row in store.searches()]
        store.close()
        return found

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(names, range(6)))
    assert found == [["fake"] if version else []] * 6
