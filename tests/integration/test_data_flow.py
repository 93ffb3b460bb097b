"""Searches of paths as a user runs them, on trained experts."""

import pytest
import yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def names(sketch):
    return list(sketch.experts)


def run(driver, sketch, space, kind, evaluations=24):
    budget = {"evaluations": evaluations, "finalists": 2}
    driver.write(
        sketch, space=space, optimizer={"kind": kind, "seed": 1}, budget=budget, baselines={"single_coefficient": 0}
    )
    driver.run("check", "search.yaml")
    driver.run("run", "search.yaml")
    results = driver.results()
    assert results.state == "finished"
    asked = [c for c in results.candidates if c.origin == "optimizer"]
    assert {c.recipe.body.kind for c in asked} == {"path"}
    assert not results.failures
    return results


def best_path(results):
    asked = [c for c in results.candidates if c.recipe.body.kind == "path" and len(c.recipe.body.slots) > 1]
    return str(max(asked, key=lambda c: results.chooser.number(c, "search")).number)


def test_edits_from_check_to_export(driver, sketch, names):
    results = run(driver, sketch, {"kind": "data_flow", "models": names, "scales": "hop"}, "cat_cma")
    chosen = best_path(results)
    driver.run("report", "small", "-o", "report.html")
    assert "hop" in (driver.folder / "report.html").read_text()
    driver.run("show", "small", chosen)
    driver.run("export", "small", "--candidate", chosen, "--to", "path")
    driver.run("export", "small", "--candidate", chosen, "--to", "recipe.json", "--format", "recipe")
    driver.run("merge", "recipe.json", "--to", "again")
    one, two = (driver.folder / name / "model.safetensors" for name in ("path", "again"))
    assert one.read_bytes() == two.read_bytes()
    driver.run("export", "small", "--candidate", chosen, "--to", "slices.yaml", "--format", "mergekit")
    assert yaml.safe_load((driver.folder / "slices.yaml").read_text())["merge_method"] == "passthrough"
    task = ("--tasks", "rev_e_mc", "--include-path", sketch.tasks, "--limit", 40)
    exported = driver.run("evaluate", "path", *task, "--json").stdout
    assert exported == driver.run("evaluate", "recipe.json", *task, "--json").stdout


@pytest.mark.parametrize(("form", "kind"), [("paper", "cma_es"), ("swaps", "auto")])
def test_other_forms(driver, sketch, names, form, kind):
    run(driver, sketch, {"kind": "data_flow", "models": names, "form": form}, kind, evaluations=16)


def test_joint(driver, sketch, names):
    results = run(driver, sketch, {"kind": "joint", "models": [{"layer_groups": 2}, names[0]]}, "cat_cma")
    driver.run("export", "small", "--candidate", best_path(results), "--to", "path")
    assert (driver.folder / "path" / "model.safetensors").exists()


def test_hybrid(driver, sketch, names):
    space = {"kind": "hybrid", "merge": {"operator": "task_arithmetic"}, "models": [names[0]]}
    results = run(driver, sketch, space, "cat_cma")
    first = results.record.store.find("small.first")
    assert first is not None
    merges = results.record.row.plan["merges"]
    paths = [c.recipe.body for c in results.candidates if c.recipe.body.kind == "path"]
    assert all(path.slots[0].model_dump(mode="json") == merges[0] for path in paths)
    spent = results.spent
    driver.run("run", "search.yaml")
    assert driver.results().spent == spent, "a finished search is not run again"
