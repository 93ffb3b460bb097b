"""The record in columns says what the record says, however it was read."""

import sqlite3
from contextlib import closing, suppress

import numpy as np
import pytest
import sqlalchemy as sa
from fake_search import DieAfter, Stop, finish, started
from fakes import FakeSpec, followed, search_file

from evomerge.columns import FAILURES, NONE, SPLITS, Columns
from evomerge.results import Results
from evomerge.stopping import Stopping
from evomerge.store import Store

NAMES = ("first/acc", "second/acc")
RACING = {"racing": {"threshold": 0.49}}


@pytest.fixture(params=["plain", "failures", "racing"])
def results(request, tmp_path):
    changes = {"evaluation": RACING} if request.param == "racing" else {}
    spec = FakeSpec(fail_above=0.9) if request.param == "failures" else None
    results = finish(search_file(tmp_path, **changes), spec)
    assert bool(results.stopped) == (request.param == "racing")
    assert bool(results.failures) == (request.param == "failures")
    return results


def same(one, other):
    """Two readings of one record."""
    np.testing.assert_array_equal(one._ids, other._ids)
    assert one.special == other.special
    for mine, theirs in zip(one.evaluations, other.evaluations, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(one.costs, other.costs)
    np.testing.assert_array_equal(one.created, other.created)


def test_it_is_the_sequence_of_all_candidates(results):
    columns, all_candidates = results.candidates, results.record.candidates()
    assert list(columns) == all_candidates
    assert len(columns) == len(all_candidates)
    assert columns[3] == all_candidates[3]
    assert columns[-1] == all_candidates[-1]
    assert columns[2:7:2] == all_candidates[2:7:2]
    assert columns.records([5, 1, 5]) == [all_candidates[i] for i in (5, 1, 5)]
    assert [columns.label(c.number) for c in all_candidates] == [c.label for c in all_candidates]
    with pytest.raises(IndexError):
        columns[len(columns)]


def test_columns_hold_what_the_records_hold(results):
    columns = results.candidates
    for candidate in columns:
        for split in SPLITS:
            expected = candidate.values(split, NAMES)
            found = columns.values[split][candidate.number]
            np.testing.assert_array_equal(found, np.full(2, np.nan) if expected is None else expected)
            row = columns.latest(split)[candidate.number]
            evaluation = candidate.evaluations.get(split)
            assert (row == NONE) == (evaluation is None)
            if evaluation:
                assert columns.evaluations.ids[row] == evaluation.id
                assert columns.evaluations.stopped[row] == (evaluation.stopped is not None)
                kind = columns.evaluations.failures[row]
                assert (evaluation.failure.kind.value if evaluation.failure else None) == (
                    None if kind == NONE else FAILURES[kind]
                )
    assert columns.created.tolist() == [c.created for c in columns]


def test_document_scores_come_in_the_order_asked_for(results):
    columns = results.candidates
    rows = columns.evaluations.of("search").tolist()[::-1]
    for row, found in zip(rows, columns.document_scores(rows), strict=True):
        evaluation = columns[columns.evaluations.candidates[row]].evaluations["search"]
        assert set(found) == set(evaluation.scores)
        for name in found:
            np.testing.assert_array_equal(found[name], results.record.document_scores(evaluation, name))


@pytest.mark.parametrize("count", [1, 5, 17])
def test_reading_what_is_new_equals_reading_anew(tmp_path, count):
    file = search_file(tmp_path)
    with suppress(Stop), started(file, watcher=DieAfter(count)) as search:
        search.run()
    other = search_file(tmp_path, name="other")
    finish(other)  # keys of the database are no longer without gaps
    columns = Columns.read(Store(file.storage).search("fake"), NAMES)
    assert columns.newer() is columns
    before, costs = len(columns.evaluations.ids), columns.costs.copy()
    with suppress(Stop), started(file, watcher=DieAfter(10)) as search:
        search.run()
    newer = columns.newer()
    assert len(newer.evaluations.ids) == before + 10
    same(newer, Columns.read(Store(file.storage).search("fake"), NAMES))
    assert len(columns.evaluations.ids) == before  # a value: what was read stays
    np.testing.assert_array_equal(newer.costs[:before], costs)


def test_results_follow_a_search(tmp_path):
    file = search_file(tmp_path)
    with suppress(Stop), started(file, watcher=DieAfter(20)) as search:
        search.run()
    results = Results.of(Store(file.storage).search("fake"))
    assert results.newer() is results
    assert (results.spent, results.state) == (20, "searching")
    finish(file)
    newer = results.newer()
    assert newer.state == "finished"
    assert [c.number for c in newer.front] == [c.number for c in Results.of(newer.record).front]


@pytest.mark.parametrize(
    "budget", [{"evaluations": 30}, {"plateau": 8, "plateau_tolerance": 0.01}, {"stall": 8}, {"documents": 900}]
)
def test_stopping_is_the_same_from_columns(results, budget):
    budget = results.file.budget.model_copy(update=budget)
    arguments = {"documents": 80}
    one = followed(budget, results.objectives, results.candidates, **arguments)
    other = Stopping.of_columns(budget, results.objectives, results.candidates, **arguments)
    assert (one.evaluations, one.reason()) == (other.evaluations, other.reason())
    for name in ("_better_at", "_grown_at", "_answers", "_volume"):
        if name in ("_answers",) or budget.plateau is not None or budget.stall is not None:
            assert getattr(one, name) == getattr(other, name)


def test_nothing_is_sorted_to_be_read(tmp_path):
    """Rows come in the order of an index, and new ones are found without going through the others."""
    results = finish(search_file(tmp_path), None)
    said = []

    def note(connection, _cursor, statement, parameters, _context, _many):
        if statement.startswith("SELECT"):
            said.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        results.candidates.newer()
        Columns.read(results.record, NAMES)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    steps = [step for statement, parameters in said for step in planned(tmp_path, statement, parameters)]
    assert any("evaluations_by_search (search_id=? AND id>?" in step for step in steps)
    assert not [step for step in steps if "TEMP B-TREE" in step or step.startswith("SCAN")]


def planned(folder, statement, parameters):
    """What SQLite does for a statement."""
    (file,) = folder.glob("*.db")
    with closing(sqlite3.connect(file)) as connection:
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
