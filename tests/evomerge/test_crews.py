"""Who works now, from the driver's pool through the record to those who look."""

import json

from fake_search import started
from fakes import FakeSpec, search_file

from cluster.in_process import InProcessPool
from cluster.pool import Crowd, Place, WorkerNow
from evomerge import crews, tables
from evomerge.crews import Crew, Seat
from evomerge.dashboard import parts
from evomerge.dispatch import Task
from evomerge.results import Results


def test_who_works_is_said_while_a_driver_runs(tmp_path):
    brake = tmp_path / "brake"
    brake.touch()
    file = search_file(tmp_path)
    pool = InProcessPool(FakeSpec(seconds=0.3, brake=str(brake)), workers=2)
    with started(file, pool=pool) as search:
        dispatcher, record = search._dispatcher, search.record
        dispatcher.send(Task(search.candidates[2], "search", search.problem.splits.search))
        crews.save(record, dispatcher)
        assert crews.at_work(record) is None  # nobody holds the search's lock
        with record.store.driving(record.name):
            crew = crews.at_work(record)
            assert [(seat.doing, seat.candidate, seat.split) for seat in crew.seats] == [
                ("busy", 2, "search"),
                ("waiting", None, None),
            ]
            results = Results.of(record)
            assert any(
                line.startswith("workers     2: 1 busy, 1 without a place (1 on ")
                for line in tables.status_lines(results)
            )
            assert json.loads(json.dumps(tables.status_json(results)))["workers"][0]["candidate"] == 2
            shown = str(parts.workers_table(results))
            assert "1 busy" in shown
            assert "two" in shown  # the name of candidate 2
            list(dispatcher.collect(60.0))
            crews.save(record, dispatcher)
            assert [seat.doing for seat in crews.at_work(record).seats] == ["idle", "waiting"]


def test_a_search_tells_of_its_workers_by_itself(tmp_path):
    with started(search_file(tmp_path)) as search:
        with search.record.store.driving("fake"), crews.kept(search.record, search._dispatcher, str):
            search.run()
            assert crews.at_work(search.record) is not None
        assert crews.latest(search.record) is None


def test_a_crew_is_told_by_host():
    seats = (
        Seat("busy", "gpu-2", "b" * 20, 11, 0.0, 7, "search"),
        Seat("waiting", "", "", 0, 0.0),
        Seat("idle", "gpu-1", "a" * 20, 12, 0.0),
        Seat("busy", "gpu-1", "a" * 20, 10, 0.0, 8, "test"),
    )
    crew = Crew(seats, 1.0)
    assert {host: [seat.process for seat in found] for host, found in crew.by_host.items()} == {
        "gpu-1": [10, 12],
        "gpu-2": [11],
        "no place yet": [0],
    }
    assert crew.line == "4: 2 busy, 1 idle, 1 without a place (2 on gpu-1, 1 on gpu-2)"


def test_a_place_becomes_a_seat(tmp_path):
    with started(search_file(tmp_path)) as search:
        seat = crews._seat(WorkerNow("starting", Place("n" * 20, "gpu-1", 5), 3.0), search._dispatcher, now=10.0)
    assert seat == Seat("starting", "gpu-1", "n" * 20, 5, 7.0)


class Crowded(InProcessPool):
    """Says that others have all workers, once, before it says that it has one."""

    crowds = (Crowd(4, 3), Crowd(4, 3), None)

    def crowd(self):
        self.crowds, now = self.crowds[1:] or self.crowds, self.crowds[0]
        return now


def test_a_search_that_waits_for_others_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.dispatch.BEAT_SECONDS", 0.0)
    said = []
    text = (
        "none yet: 4 searches share the cluster, the others have its 3 workers; "
        "this one goes on when one of them ends, or a node joins"
    )
    with started(search_file(tmp_path), pool=Crowded(FakeSpec(), workers=1)) as search:
        record, dispatcher = search.record, search._dispatcher
        with record.store.driving("fake"), crews.kept(record, dispatcher, said.append):
            list(dispatcher.collect(0.0))
            results = Results.of(record)
            assert f"workers     {text}" in tables.status_lines(results)
            assert json.loads(json.dumps(tables.status_json(results)))["crowd"] == {"pools": 4, "workers": 3}
            assert text in str(parts.workers_table(results))
            search.run()
            assert crews.at_work(record).crowd is None
    assert said == [f"workers: {text}", "workers: the first has a place"]


def test_workers_in_records_of_older_versions_are_read(tmp_path):
    with started(search_file(tmp_path)) as search:
        crews.save(search.record, search._dispatcher)
        seats = crews.latest(search.record).seats
        old = json.dumps([vars(seat) for seat in seats])
        query = crews.crews.update().values(workers=old)
        search.record.store.database.write(lambda c: c.execute(query), done=lambda _: None)
        assert crews.latest(search.record).seats == seats
