"""What `evomerge check` warns of, and what it takes the time of a search to be."""

from dataclasses import asdict, replace

import pytest
from fakes import FakeSpec, problem, search_file

from evomerge.calibration import undecided
from evomerge.estimate import _report, _seeds, _share_in_full
from evomerge.runner import find_machine
from search_spaces.seeds import base_recipe

FISHER = {"operator": "fisher"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"space": FISHER}, "one, two"),
        ({"space": FISHER, "calibration": {"tasks": {"one": ["first"]}}}, "two"),
        ({"space": FISHER, "calibration": {"tasks": {"one": ["first"], "two": ["second"]}}}, None),
        ({"space": {"operator": "ties"}}, None),
        ({"space": FISHER, "objectives": [{"task": "first"}]}, None),
    ],
)
def test_experts_that_see_all_tasks_unasked(tmp_path, changes, named):
    file = search_file(tmp_path, **changes)
    found = undecided(file, [objective.task for objective in file.objectives])
    assert [f"calibration.tasks says nothing of {named}: " in warning for warning in found] == [True] * bool(named)


def test_the_report_has_them(tmp_path):
    made = problem(search_file(tmp_path))
    worker = FakeSpec()()
    measured = worker.evaluate(base_recipe(made.space).to_json(), made.splits.search.ids)
    machine = find_machine(made.file.cluster, made)
    assert not any("calibration" in warning for warning in _report(made, machine, measured).warnings)
    file = search_file(tmp_path, space=FISHER)
    found = _report(replace(made, file=file), machine, measured)
    assert "calibration.tasks says nothing of one, two" in found.to_json()["warnings"][-1]


def report_of(file, *, part=None, share=1.0):
    made = problem(file)
    worker = FakeSpec()()
    measured = worker.evaluate(base_recipe(made.space).to_json(), made.splits.search.ids)
    measured = replace(measured, cost=replace(measured.cost, seconds=60.0))
    if part is not None:
        part = replace(measured, cost=replace(measured.cost, seconds=part))
    return made, _report(made, find_machine(made.file.cluster, made), measured, part, share)


def time_line(report):
    return next(line for line in report.lines() if line.startswith("time "))


def test_the_time_of_races_is_a_bound(tmp_path):
    budget = {"evaluations": 100}
    _, plain = report_of(search_file(tmp_path, budget=budget))
    _, raced = report_of(search_file(tmp_path, budget=budget, evaluation={"search_documents": 40, "racing": True}))
    assert (plain.racing, raced.racing) == (False, True)
    assert "about" in time_line(plain) and "at most" not in time_line(plain)
    assert f", at most about {raced.seconds_of_search / 60:.0f} min for 100 evaluations" in time_line(raced)
    assert asdict(raced)["racing"] is True


def test_the_time_of_minibatches_counts_what_is_seen(tmp_path):
    evaluation = {"search_documents": 40, "minibatches": {"count": 4}}
    file = search_file(tmp_path, budget={"evaluations": 100}, evaluation=evaluation, optimizer={"kind": "cma_es"})
    share = _share_in_full(problem(file))
    assert 0.0 < share < 0.5  # the middle of each generation
    made, report = report_of(file, part=15.0, share=share)
    points = 100 - _seeds(made)
    expected = 60.0 * (_seeds(made) + share * points) + 15.0 * (1.0 - share) * points
    assert report.seconds_of_search * report.workers == pytest.approx(expected)
    assert "15.00 s on a minibatch" in time_line(report)
