"""A search of an operator that needs statistics: prompts, record, export and rebuilding on another machine."""

import json
import shutil

import pytest

pytestmark = pytest.mark.slow


def test_the_winner_is_rebuilt_from_record_or_recipe_alone(driver, sketch, tmp_path):
    tasks = {"expert-reverse": ["rev_e"], "expert-language": ["general_j"]}
    driver.write(
        sketch,
        space={"operator": "regmean", "weight": [0.0, 1.5]},
        calibration={"documents": 8, "tasks": tasks},
        baselines={"single_coefficient": 0},
        budget={"evaluations": 12, "finalists": 2},
    )
    machines = {
        name: {**driver.environment, "EVOMERGE_CACHE": str(tmp_path / name)} for name in ("one", "two", "three")
    }
    driver.environment = machines["one"]
    driver.run("run", "search.yaml")
    results = driver.results()
    chosen = next(c for c in results.candidates if c.origin == "optimizer")
    operator = chosen.recipe.body.blocks[0].operator
    assert operator.kind == "regmean"
    plan = results.record.row.plan
    assert len(plan["calibration"]["samples"]) == 16
    assert not set(plan["documents"]["search"]) & {"rev_e", "general_j"}  # prompts are no objectives
    assert (
        results.estimate(chosen, "search")["joint"].value
        > results.estimate(results.references[0], "search")["joint"].value
    )
    driver.run("export", "small", "--candidate", chosen.number, "--to", "first")
    driver.environment = machines["two"]  # the record alone
    driver.run("export", "small", "--candidate", chosen.number, "--to", "second")
    (driver.folder / "recipes").mkdir()
    driver.run("export", "small", "--candidate", chosen.number, "--format", "recipe", "--to", "recipes/one.json")
    driver.environment = machines["three"]  # the recipe and what lies beside it
    driver.run("merge", "recipes/one.json", "--to", "third")
    weights = [(driver.folder / name / "model.safetensors").read_bytes() for name in ("first", "second", "third")]
    assert weights[0] == weights[1] == weights[2]
    shutil.rmtree(tmp_path / "three")
    next((driver.folder / "recipes").glob("calibration-*.json")).unlink()
    refused = driver.run("merge", "recipes/one.json", "--to", "fourth", status=2)
    assert "calibration prompts" in refused.stderr and "Traceback" not in refused.stderr
    recipe = json.loads((driver.folder / "third" / "recipe.json").read_text())
    assert len(recipe["body"]["blocks"][0]["operator"]["prompts"]) == 64
