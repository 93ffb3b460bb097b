"""What is said of a search on which somebody works, nobody works any more, or nobody is left to say anything."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from fake_search import DieAfter, Stop, finish, started
from fakes import search_file

from evomerge import crews, tables
from evomerge.dashboard import pages, parts
from evomerge.dashboard.live import Live, version
from evomerge.results import Results
from evomerge.standing import SILENT_SECONDS, standing
from evomerge.store import Store

DRIVE = """
import sys, time
from fake_search import started
from fakes import search_file
from pathlib import Path
from evomerge import cli, crews
import signal
signal.signal(signal.SIGTERM, cli._interrupt)
folder = Path(sys.argv[1])
with started(search_file(folder)) as search:
    with search.record.store.driving("fake"), crews.kept(search.record, search._dispatcher, print):
        crews.save(search.record, search._dispatcher)
        (folder / "runs").touch()
        time.sleep(60)
"""


def first_line(results):
    return tables.status_lines(results)[0]


@pytest.mark.parametrize(("how", "state"), [(signal.SIGTERM, "interrupted"), (signal.SIGKILL, "lost")])
def test_a_driver_that_ends_is_told_from_one_that_works(tmp_path, how, state):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    driver = subprocess.Popen([sys.executable, "-c", DRIVE, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
    while not (tmp_path / "runs").exists():
        assert driver.poll() is None
        time.sleep(0.05)
    live = Live(search_file(tmp_path).storage)
    results = live.results("fake")
    assert standing(results).state == "searching"
    assert f"process {driver.pid} " in tables.status_json(results)["driver"]
    assert first_line(results) == "search      fake: searching"
    before = version(results)
    driver.send_signal(how)
    driver.wait()

    results = live.results("fake")
    now = standing(results)
    assert (now.state, now.driver) == (state, None)
    assert version(results) != before  # so that an open page changes
    told = json.loads(json.dumps(tables.status_json(results)))
    assert (told["state"], told["workers"]) == (state, [])
    assert "evomerge run" in tables.status_lines(results)[1]
    for shown in (str(pages.search_card(results)), str(parts.headline(results))):
        assert f"pill {state}" in shown
        assert "searching" not in shown
    if state == "lost":
        assert told["last_sign"] == crews.latest(results.record).seen
        assert re.search(r"fake: no sign of life since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", first_line(results))
    else:
        assert told["last_sign"] is None
        assert first_line(results) == "search      fake: interrupted"


def test_a_driver_that_holds_the_lock_and_gives_no_sign_is_told(tmp_path, monkeypatch):
    """A stopped process; one that has just taken over from a killed one has given no sign yet, and is none."""
    file = search_file(tmp_path)
    with suppress(Stop), started(file, watcher=DieAfter(12)) as search:
        crews.save(search.record, search._dispatcher)
        search.run()
    with Store(file.storage).driving("fake"):
        results = Results.of(Store(file.storage).search("fake"))
        later = time.time() + 2 * SILENT_SECONDS
        monkeypatch.setattr("evomerge.standing.time.time", lambda: later)
        assert standing(results).words == "searching"  # it prepares
        crews.save(search.record, search._dispatcher)
        before = version(results)
        assert standing(results).words == "searching"
        monkeypatch.setattr("evomerge.standing.time.time", lambda: later + 2 * SILENT_SECONDS)
        assert re.fullmatch(r"searching, but no sign of life since [-\d]{10} [:\d]{8}", standing(results).words)
        assert version(results) != before
        assert f"(process {os.getpid()} on " in tables.status_lines(results)[1]
        assert tables.status_json(results)["last_sign"] == crews.latest(results.record).seen


def test_the_last_result_is_a_sign_of_life(tmp_path):
    with suppress(Stop), started(search_file(tmp_path), watcher=DieAfter(12)) as search:
        crews.save(search.record, search._dispatcher)
        search.run()
    results = Results.of(Store(search_file(tmp_path).storage).search("fake"))
    assert standing(results).last_sign == results.candidates.evaluations.created[-1]


def test_what_is_finished_is_not_interrupted(tmp_path):
    file = search_file(tmp_path)
    with suppress(Stop), started(file, watcher=DieAfter(12)) as search:
        search.run()
    read_before = Results.of(Store(file.storage).search("fake"))
    assert standing(read_before).state == "interrupted"
    finished = finish(file)
    assert standing(finished).remedy is None
    assert standing(read_before).state == "finished"  # whatever was true when it was read
