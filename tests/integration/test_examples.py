"""Every example runs, and does what it says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from integration_driver import ENVIRONMENT

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_all_examples_are_run_here():
    """All but those of `cluster`, which test_cluster_examples.py validates."""
    assert sorted(path.name for path in EXAMPLES.iterdir()) == ["cluster", "natural_niches.yaml", "python_api.py"]


def test_python_api(tmp_path, sketch):
    shutil.copytree(sketch.root, tmp_path / "experts" / sketch.root.name)
    call = [sys.executable, EXAMPLES / "python_api.py", tmp_path]
    done = subprocess.run(call, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = {line[:28].strip(): float(line[28:].split()[0]) for line in done.stdout.splitlines() if "[" in line}
    winner = next(score for label, score in scores.items() if label.startswith("winner"))
    untuned = [score for label, score in scores.items() if not label.startswith(("winner", "single"))]
    assert winner > max(untuned) + 0.1
    for made in ("merged/model.safetensors", "tables/candidates.parquet", "report.html"):
        assert (tmp_path / made).exists()


def test_natural_niches(driver, sketch):
    """The example's own sections, on two experts and with a smaller budget."""
    example = yaml.safe_load((EXAMPLES / "natural_niches.yaml").read_text(encoding="utf-8"))
    assert example["space"]["kind"] == "mosaic"
    budget = {"evaluations": 40, "finalists": 4}
    driver.write(sketch, space=example["space"], optimizer=example["optimizer"], budget=budget)
    driver.run("check", "search.yaml")
    driver.run("run", "search.yaml")
    results = driver.results()
    assert results.state == "finished"
    mosaics = [c for c in results.candidates if c.origin == "optimizer"]
    assert {c.recipe.body.kind for c in mosaics} == {"mosaic"}
    assert any(results.candidates[parent].origin == "optimizer" for c in mosaics for parent in c.parents)
    best = str(max(mosaics, key=lambda c: results.chooser.number(c, "search")).number)
    driver.run("report", "small", "-o", "report.html")
    driver.run("show", "small", best)
    driver.run("export", "small", "--candidate", best, "--to", "merged")
    assert (driver.folder / "merged" / "model.safetensors").exists()
    driver.run("export", "small", "--candidate", best, "--to", "recipe.json", "--format", "recipe")
    driver.run("merge", "recipe.json", "--to", "again")
    one, two = (driver.folder / name / "model.safetensors" for name in ("merged", "again"))
    assert one.read_bytes() == two.read_bytes()
    refused = driver.run("export", "small", "--candidate", best, "--to", "m.yaml", "--format", "mergekit", status=2)
    assert "mergekit cannot express a mosaic" in refused.stderr
