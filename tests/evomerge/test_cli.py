"""The command line on a recorded search of fakes: what reads, what refuses, and the frozen set of options."""

import json
import runpy
import sys
from contextlib import closing

import pytest
import yaml
from fakes import FakeSpec, problem, search_file

import evomerge
from cluster import in_process
from cluster.in_process import InProcessPool
from evomerge import cli
from evomerge.dispatch import Dispatcher
from evomerge.optimizers.registry import make_optimizer
from evomerge.search import Search
from evomerge.selection import conclude
from evomerge.store import Store
from evomerge.watcher import Silent
from search_spaces.recipe import Recipe

OPTIONS = {
    "demo": {"--dir", "--budget", "--seed"},
    "init": {"--base", "--expert", "--task", "--include-path", "--from-mergekit-evolve", "--output", "-o"},
    "check": {"--json"},
    "run": set(),
    "submit": {"--address", "--storage", "--env", "--driver-cpus", "--follow"},
    "jobs": {"--address", "--json"},
    "logs": {"--address", "--follow"},
    "stop": {"--address"},
    "status": {"--storage", "--json"},
    "front": {"--predicted", "--portfolio", "--storage", "--json"},
    "show": {"--storage", "--json"},
    "dashboard": {"--storage", "--host", "--port", "--token"},
    "report": {"--storage", "--output", "-o"},
    "export": {
        "--to", "--candidate", "--best", "--prefer", "--format", "--rank", "--dtype", "--memory-limit", "--storage"
    },
    "align": {"--like", "--to"},
    "compress": {"--experts", "--prompts", "--to", "--like"},
    "merge": {"--to", "--format", "--rank", "--dtype", "--memory-limit"},
    "evaluate": {
        "--tasks", "--objectives", "--base", "--endpoint", "--model", "--tokenizer", "--include-path", "--trusted-path",
        "--allow-code-execution", "--limit", "--num-fewshot", "--apply-chat-template", "--dtype", "--json"
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """The record of one finished search called fake."""
    file = search_file(tmp_path_factory.mktemp("record"))
    this = problem(file)
    store = Store(file.storage, create=True)
    record = store.create("fake", file=file.model_dump(mode="json"), plan=this.plan())
    optimizer = make_optimizer(file.optimizer, this.setting())
    with closing(InProcessPool(FakeSpec(), workers=1)) as pool, closing(store):
        search = Search(this, record, optimizer, Dispatcher(pool, timeout_seconds=30), Silent())
        search.run()
        conclude(search)
    return file.storage


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line; return exit status, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        found = capsys.readouterr()
        return status, found.out, found.err

    return call


def test_commands_and_options_are_frozen():
    import typer.main

    commands = typer.main.get_command(cli.app).commands
    found = {
        name: {flag for p in command.params if p.param_type_name == "option" for flag in p.opts} - {"--help"}
        for name, command in commands.items()
    }
    assert found == OPTIONS


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evomerge", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module("evomerge", run_name="__main__")
    assert "status" in capsys.readouterr().out


def test_status_front_and_show_as_json(run, storage):
    _, out, _ = run("status", "fake", "--storage", storage, "--json")
    status = json.loads(out)
    assert (status["state"], status["evaluations"], status["budget"]) == ("finished", 40, 40)
    _, out, _ = run("front", "fake", "--storage", storage, "--json")
    front = json.loads(out)
    assert [candidate["number"] for candidate in front] == status["front"]
    _, out, _ = run("show", "fake", "best", "--storage", storage, "--json")
    best = json.loads(out)
    assert best["number"] == status["winner"]
    assert set(best["evaluations"]) == {"search", "validation", "test"}
    assert Recipe.model_validate(best["recipe"]).digest == best["recipe_digest"]


def test_status_front_and_show_for_people(run, storage):
    status, out, _ = run("status", "fake", "--storage", storage)
    assert status == 0
    assert "fake: finished" in out
    _, out, _ = run("front", "fake", "--storage", storage)
    assert "Pareto front of fake" in out
    assert "winner (" in out
    _, out, _ = run("show", "fake", "best", "--storage", storage)
    assert "weight/one/layers-0-1" in out


def test_a_search_file_names_its_search(run, storage, tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(search_file(tmp_path, storage=storage).model_dump(mode="json")))
    assert "fake: finished" in run("status", path)[1]


def test_report_is_written(run, storage, tmp_path):
    status, _, _ = run("report", "fake", "--storage", storage, "-o", tmp_path / "r.html")
    assert status == 0
    assert "<html" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_export_as_recipe(run, storage, tmp_path):
    assert run("export", "fake", "--storage", storage, "--format", "recipe", "--to", tmp_path / "r.json")[0] == 0
    recipe = Recipe.model_validate_json((tmp_path / "r.json").read_text())
    best = evomerge.load("fake", storage=storage).winner
    assert recipe.digest == best.recipe_digest


def test_export_as_tables(run, storage, tmp_path):
    status, out, _ = run("export", "fake", "--storage", storage, "--format", "csv", "--to", tmp_path / "tables")
    assert (status, out) == (0, f"wrote all candidates to {tmp_path / 'tables'}\n")
    lines = (tmp_path / "tables" / "candidates.csv").read_text().splitlines()
    assert len(lines) == 1 + len(evomerge.load("fake", storage=storage).candidates)


def test_reports_recipes_and_tables_at_a_url(run, storage):
    import fsspec

    store = fsspec.filesystem("memory")
    assert run("report", "fake", "--storage", storage, "-o", "memory://cli/r.html")[:2] == (
        0,
        "wrote memory://cli/r.html\n",
    )
    assert b"<html" in store.cat("/cli/r.html")
    command = ("export", "fake", "--storage", storage, "--format")
    assert run(*command, "recipe", "--to", "memory://cli/r.json")[0] == 0
    best = evomerge.load("fake", storage=storage).winner
    assert Recipe.model_validate_json(store.cat("/cli/r.json")).digest == best.recipe_digest
    assert "exists already" in run(*command, "recipe", "--to", "memory://cli/r.json")[2]
    assert run(*command, "parquet", "--to", "memory://cli/tables")[0] == 0
    assert store.glob("/cli/tables/*") == ["/cli/tables/candidates.parquet", "/cli/tables/documents.parquet"]


def test_export_as_a_study(run, storage, tmp_path):
    to = tmp_path / "study.journal"
    status, out, _ = run("export", "fake", "--storage", storage, "--format", "optuna", "--to", to)
    assert (status, out) == (0, f"wrote all candidates to {to}\n")
    assert to.read_bytes().count(b"\n") > 40


def test_prefer_picks_along_the_front(run, storage, tmp_path):
    results = evomerge.load("fake", storage=storage)
    values = {}
    for task in ("first", "second"):
        to = tmp_path / f"{task}.json"
        assert (
            run("export", "fake", "--storage", storage, "--prefer", f"{task}=1", "--format", "recipe", "--to", to)[0]
            == 0
        )
        digest = Recipe.model_validate_json(to.read_text()).digest
        candidate = next(c for c in results.candidates if c.recipe_digest == digest)
        measured = candidate.values("validation", results.chooser.names)
        values[task] = dict(zip(results.chooser.names, measured, strict=True))
    assert values["first"]["first/acc"] >= values["second"]["first/acc"]
    assert values["second"]["second/acc"] >= values["first"]["second/acc"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("status", "nothing"), "no search 'nothing'"),
        (("show", "fake", "999"), "candidates 0 to"),
        (("show", "fake", "-1"), "No such option"),
        (("show", "fake", "worst"), "expected a number or 'best'"),
        (("export", "fake", "--to", "x", "--best", "--candidate", "1"), "give one of"),
        (("export", "fake", "--to", "x", "--dtype", "int8"), "expected one of float32, bfloat16, float16"),
        (("export", "fake", "--to", "x", "--rank", "4"), "--rank is of adapters and bases"),
        (
            ("export", "fake", "--to", "x", "--format", "gguf"),
            "expected one of checkpoint, adapter, reversible, mergekit, recipe, csv, parquet",
        ),
        (("export", "fake", "--to", "x", "--format", "csv", "--best"), "--format csv writes all candidates"),
        (("export", "fake", "--to", "x", "--prefer", "third=1"), "no objective 'third'"),
        (("export", "fake", "--to", "x", "--prefer", "first"), "expected task=weight"),
        (("export", "fake", "--to", "x", "--prefer", "first=-1"), "positive number"),
        (("export", "fake", "--to", "x", "--prefer", "first>=0.999,second>=0.999"), "no candidate of the front keeps"),
        (("front", "fake", "--predicted"), "no surrogates: its optimizer is cma_es"),
    ],
)
def test_mistakes_are_one_line_and_status_two(run, storage, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*arguments, "--storage", storage)
    assert status == 2
    assert expected in err
    assert err.startswith("evomerge: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "nothing.yaml"), "no such file"),
        (("check", "nothing.yaml"), "no such file"),
        (("status", "x"), "no such file; is this the folder"),
        (("merge", "nothing.json", "--to", "x"), "no such file"),
        (("init",), "init needs --base, --expert, --task"),
        (("runn",), "No such command"),
        (("status",), "Missing argument"),
        (("evaluate", "model"), "--tasks, --objectives or both"),
        (("evaluate", "model", "--objectives", "nothing.yaml"), "nothing.yaml: no such file"),
        (("evaluate", "--tasks", "a"), "name a model or recipe, or else both --endpoint and --model"),
        (("evaluate", "--endpoint", "http://x/v1/completions", "--tasks", "a"), "both --endpoint and --model"),
    ],
)
def test_mistakes_without_a_search(run, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*arguments)
    assert status == 2
    assert expected in err


def test_a_broken_recipe_is_refused(run, tmp_path):
    (tmp_path / "r.json").write_text('{"sources": []}')
    status, _, err = run("merge", tmp_path / "r.json", "--to", tmp_path / "x")
    assert status == 2
    assert "not a recipe: sources" in err


def test_interrupt_says_how_to_continue(run, monkeypatch, tmp_path):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(evomerge, "load_file", interrupted)
    monkeypatch.setattr(in_process, "busy", lambda: False)  # threads that other tests left must not end this process
    status, _, err = run("run", tmp_path / "search.yaml")
    assert status == 130
    assert "Run the same command again to continue" in err


def test_init_writes_a_file_that_checks_and_refuses_to_overwrite(run, tmp_path):
    arguments = ("init", "--base", "org/b", "--expert", "org/e", "--task", "t/acc", "-o", tmp_path / "s.yaml")
    assert run(*arguments)[0] == 0
    file = evomerge.load_file(tmp_path / "s.yaml")
    assert (file.name, file.objectives[0].name) == ("s", "t/acc")
    status, _, err = run(*arguments)
    assert status == 2
    assert "exists already" in err


def test_init_converts_mergekit_evolve(run, tmp_path):
    source = {
        "genome": {
            "models": ["org/a", "org/b"],
            "merge_method": "dare_ties",
            "base_model": "org/base",
            "filters": ["self_attn", "mlp"],
            "tokenizer_source": "org/b",
            "normalize": False,
            "allow_negative_weights": True,
        },
        "tasks": [{"name": "gsm8k", "metric": "exact_match,strict-match", "weight": 2.0}],
        "limit": 100,
        "num_fewshot": 4,
    }
    (tmp_path / "evolve.yml").write_text(yaml.safe_dump(source))
    assert run("init", "--from-mergekit-evolve", tmp_path / "evolve.yml", "-o", tmp_path / "s.yaml")[0] == 0
    file = evomerge.load_file(tmp_path / "s.yaml")
    assert file.space.operator == "dare_ties"
    assert (file.space.weight, file.space.normalize, file.space.density_start) == ((-1.5, 1.5), False, 1.0)
    assert [next(iter(group)) for group in file.space.tensor_groups] == ["self_attn", "mlp"]
    assert file.sources.vocabulary_policy().source == 2
    assert file.objectives[0].weight == 2.0
    assert (file.evaluation.search_documents, file.evaluation.num_fewshot) == (100, 4)
    source["genome"]["merge_methodd"] = "x"
    (tmp_path / "evolve.yml").write_text(yaml.safe_dump(source))
    status, _, err = run("init", "--from-mergekit-evolve", tmp_path / "evolve.yml", "-o", tmp_path / "t.yaml")
    assert status == 2
    assert "unknown key genome.merge_methodd" in err
