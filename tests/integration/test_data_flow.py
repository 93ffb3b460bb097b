"""Searches of paths on trained experts: one as a user runs it, the other forms in this process."""

from itertools import pairwise

import pytest
import yaml

import evomerge
from evomerge.config import parse
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.resident import ResidentModel
from evomerge.results import Results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def names(sketch):
    return list(sketch.experts)


def changes(space, kind, evaluations):
    return {
        "space": space,
        "optimizer": {"kind": kind, "seed": 1},
        "budget": {"evaluations": evaluations, "finalists": 2},
        "baselines": {"single_coefficient": 0},
        "evaluation": {"search_documents": 16, "validation_documents": 16, "test_documents": 32},
    }


def best_path(results):
    asked = [c for c in results.candidates if c.recipe.body.kind == "path" and len(c.recipe.body.slots) > 1]
    return max(asked, key=lambda c: results.chooser.number(c, "search"))


def check(results):
    assert results.state == "finished"
    assert not results.failures
    assert {c.recipe.body.kind for c in results.candidates if c.origin == "optimizer"} == {"path"}


def test_edits_from_check_to_export(driver, sketch, names):
    value = changes({"kind": "data_flow", "models": names, "scales": "hop"}, "cat_cma", 20)
    value["evaluation"] |= {"include_path": [str(sketch.tasks)]}
    driver.write(sketch, **value)
    driver.run("check", "search.yaml")
    driver.run("run", "search.yaml")
    results = driver.results()
    check(results)
    chosen = best_path(results)
    driver.run("report", "small", "-o", "report.html")
    assert "hop" in (driver.folder / "report.html").read_text(encoding="utf-8")
    driver.run("show", "small", chosen.number)
    driver.run("export", "small", "--candidate", chosen.number, "--to", "path")
    driver.run("export", "small", "--candidate", chosen.number, "--to", "slices.yaml", "--format", "mergekit")
    slices = yaml.safe_load((driver.folder / "slices.yaml").read_text(encoding="utf-8"))
    assert slices["merge_method"] == "passthrough"
    checkpoints = [Checkpoint.open(source) for source in (sketch.base, *sketch.experts.values())]
    resident = ResidentModel(checkpoints, tokenizer=chosen.recipe.tokenizer, dtype="float32")
    folded = resident.apply(chosen.recipe, folded=True).state_dict()
    exported = Checkpoint.open(driver.folder / "path")
    for name in exported.names:
        assert (exported.tensor(name) == folded[name]).all(), "what was measured is what is written"


def run(tmp_path, driver, sketch, space, kind):
    value = driver.write(sketch, **changes(space, kind, 26))
    value["evaluation"] |= {"include_path": [str(sketch.tasks)]}
    return evomerge.run(parse(value | {"storage": f"sqlite:///{tmp_path}/x.db"}, folder=tmp_path, where="test"))


@pytest.mark.parametrize(("form", "kind"), [("paper", "cma_es"), ("swaps", "auto")])
def test_other_forms(tmp_path, driver, sketch, names, form, kind):
    check(run(tmp_path, driver, sketch, {"kind": "data_flow", "models": names, "form": form}, kind))


def test_joint(tmp_path, driver, sketch, names):
    results = run(tmp_path, driver, sketch, {"kind": "joint", "models": [{"layer_groups": 2}, names[0]]}, "cat_cma")
    check(results)
    assert all(c.recipe.body.merged_slots for c in results.candidates if c.origin == "optimizer")


def test_hybrid_with_measured_scales(tmp_path, driver, sketch, names, monkeypatch):
    space = {"kind": "hybrid", "merge": {"operator": "task_arithmetic"}, "models": [names[0]]}
    space |= {"scales": "none", "scale_start": "second_moments"}
    results = run(tmp_path, driver, sketch, space, "cat_cma")
    check(results)
    first = results.record.store.find("small.first")
    merges = results.record.row.plan["merges"]
    assert merges == [Results.of(first).winner.recipe.body.model_dump(mode="json")]
    paths = [c.recipe.body for c in results.candidates if c.recipe.body.kind == "path"]
    assert all(path.slots[0].model_dump(mode="json") == merges[0] for path in paths)
    merge, expert = results.record.row.plan["moments"]
    assert len(merge) == len(expert) == results.record.row.plan["layers"] + 1
    assert merge != expert
    switches = [
        (hop.scale, expert[hop.layer] / merge[before.layer + 1])
        for path in paths
        for before, hop in pairwise(path.hops)
        if (before.slot, hop.slot) == (0, 1)
    ]
    assert switches and all(scale == wanted for scale, wanted in switches)
    monkeypatch.setattr("evomerge.path_spaces.stream_moments", None)  # a search goes on with what it began with
    again = run(tmp_path, driver, sketch, space, "cat_cma")
    assert len(again.candidates) == len(results.candidates), "a finished search is not run again"
