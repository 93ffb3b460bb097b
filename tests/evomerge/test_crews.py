"""Who works now, from the driver's pool through the record to those who look."""

import json

from fake_search import started
from fakes import FakeSpec, search_file

from cluster.in_process import InProcessPool
from cluster.pool import Place, WorkerNow
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
        with search.record.store.driving("fake"), crews.kept(search.record, search._dispatcher):
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
