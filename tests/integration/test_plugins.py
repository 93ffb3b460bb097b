"""The package of docs/plug-ins.md: installed by pip, searched with, exported, and upgraded under a search."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from integration_driver import Driver

import evomerge
from evomerge import plugins
from evomerge.errors import BadRecipe, BadSearch
from evomerge.export import export, merge_file

pytestmark = pytest.mark.slow
DOCS = Path(__file__).resolve().parents[2] / "docs" / "plug-ins.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def install(folder, site):
    """What a user does, without a network: setuptools is here, evomerge is on the path."""
    (folder / "pyproject.toml").write_text(blocks("toml")[0])
    (folder / "evomerge_examples.py").write_text(blocks("python")[0])
    options = ("-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site), str(folder))
    subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True, capture_output=True)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The folder into which the package is installed; this process and those that it starts see it."""
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    install(package, site)
    monkeypatch.syspath_prepend(str(site))
    plugins.forget()
    yield site
    plugins.forget()


def test_the_package_of_the_docs(sketch, site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    driver = Driver(tmp_path)
    path = f"{site}:{driver.environment.get('PYTHONPATH', '')}"
    driver.environment = driver.environment | {"PYTHONPATH": path}
    documents = {"search_documents": 16, "validation_documents": 16, "test_documents": 16}
    sections = {
        **yaml.safe_load(blocks("yaml")[0]),
        "evaluation": {**documents, "include_path": [str(sketch.tasks)]},
        "budget": {"evaluations": 14, "finalists": 2},
        "baselines": {"single_coefficient": 0},
    }
    driver.write(sketch, **sections)
    driver.run("run", "search.yaml")

    results = driver.results()
    assert (results.state, results.spent) == ("finished", 14)
    assert set(results.winner.evaluations["test"].scores) == {"rev_j/exact_match", "rev_j/charset"}
    proposed = results.candidate(13)
    assert proposed.recipe.body.blocks[0].operator.kind == "clipped"
    export(results, proposed, tmp_path / "merged", kind="checkpoint")
    assert (tmp_path / "merged" / "model.safetensors").exists()
    with pytest.raises(BadRecipe, match="mergekit has no operator 'clipped'"):
        export(results, proposed, tmp_path / "merged.yaml", kind="mergekit")

    metadata = next(site.glob("*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    plugins.forget()
    expected = "operator 'clipped' of evomerge-examples 1.0, and evomerge-examples 1.1 is installed"
    with pytest.raises(BadSearch, match=expected):
        evomerge.run(results.file)
    with pytest.raises(BadRecipe, match="made with evomerge-examples==1.0, and evomerge-examples==1.1"):
        merge_file(tmp_path / "merged" / "recipe.json", tmp_path / "again")
    assert driver.results().state == "finished"
