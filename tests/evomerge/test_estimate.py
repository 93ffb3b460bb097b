"""What `evomerge check` warns of."""

from dataclasses import replace

import pytest
from fakes import FakeSpec, problem, search_file

from evomerge.calibration import undecided
from evomerge.estimate import _report
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
