"""Files and rows that mean harm: each is refused on one line, or shown without doing any."""

import json
import sqlite3
from contextlib import nullcontext

import pytest
import yaml
from fake_search import finish
from fakes import search_file

from evomerge import config, foreign
from evomerge.errors import BadRecipe, BadSearch, BadSource, UserMistake
from evomerge.results import Results
from evomerge.store import Store

DEEP_JSON = "[" * 100_000 + "]" * 100_000
DEEP_YAML = "[" * 20_000 + "]" * 20_000
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
CYCLE = "name: &name [*name]\n"
SCRIPT = "<script>alert(1)</script>"
SEARCH = {"name": "ok", "sources": {"base": "./b", "experts": ["./e"]}, "objectives": [{"task": "t"}]}


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 2000
    return text


# ---------------------------------------------------------------- model folders


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    return folder


def opened(folder):
    from evomerge.merging.checkpoint import Checkpoint

    with pytest.raises(BadSource) as error:
        Checkpoint.open(folder)
    return one_line(error)


@pytest.mark.parametrize("content", [DEEP_JSON.encode(), b"\xff\xfe{", b"{", b"[1, 2]", b'"text"'])
def test_a_config_that_is_no_config(model, content):
    (model / "config.json").write_bytes(content)
    assert "config.json" in opened(model)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b.safetensors", "..", 7, None])
def test_an_index_that_names_files_elsewhere(model, name):
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    assert "index" in opened(model)


@pytest.mark.parametrize("content", [DEEP_JSON.encode(), b"\xff", b"[]", b'{"weight_map": 3}'])
def test_an_index_that_is_none(model, content):
    (model / "model.safetensors.index.json").write_bytes(content)
    assert "index" in opened(model)


@pytest.mark.parametrize(
    "content",
    [
        (2**62).to_bytes(8, "little") + b"{}",  # a header longer than any file
        len(DEEP_JSON).to_bytes(8, "little") + DEEP_JSON.encode(),
        (2).to_bytes(8, "little") + b"\xff\xff",
        b"",
    ],
)
def test_weights_with_a_hostile_header(model, content):
    (model / "model.safetensors").write_bytes(content)
    assert "not safetensors" in opened(model)


def test_links_that_lead_nowhere_or_in_circles(model):
    (model / "model.safetensors").symlink_to(model / "model.safetensors")
    assert "neither" in opened(model)
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(model / "absent")
    assert "config.json" in opened(model)


@pytest.mark.parametrize(
    "content", [DEEP_JSON, "[]", '{"model": {"vocab": 3}}', '{"model": {"vocab": {}}, "added_tokens": [3]}']
)
def test_a_tokenizer_that_is_none(tmp_path, content):
    from evomerge.merging.compatibility import _vocabulary

    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(BadSource) as error:
        _vocabulary(file)
    assert "tokenizer.json" in one_line(error)


# ---------------------------------------------------------------- search files, mergekit configs, recipes


@pytest.mark.parametrize("text", [DEEP_YAML, LAUGHS, CYCLE, "!!python/object/apply:os.system [id]", "\0", "a: b: c"])
def test_yaml_that_means_harm(tmp_path, text):
    from evomerge.merging.mergekit_config import from_mergekit

    file = tmp_path / "search.yaml"
    file.write_text(text)
    with pytest.raises(BadSearch) as error:
        config.load(file)
    one_line(error)
    with pytest.raises(BadRecipe) as error:
        from_mergekit(file)
    one_line(error)


def test_files_that_are_no_text(tmp_path):
    from evomerge.export import read_recipe

    for name, kind in (("search.yaml", BadSearch), ("mergekit.yml", BadRecipe), ("recipe.json", BadRecipe)):
        (tmp_path / name).write_bytes(b"\xff\xfe\0\0")
        with pytest.raises(kind) as error:
            config.load(tmp_path / name) if kind is BadSearch else read_recipe(tmp_path / name)
        assert name.partition(".")[0] in one_line(error) or "cannot be read" in one_line(error)


def test_a_recipe_that_is_nested_deeply(tmp_path):
    from evomerge.export import read_recipe

    (tmp_path / "recipe.json").write_text(DEEP_JSON)
    with pytest.raises(BadRecipe) as error:
        read_recipe(tmp_path / "recipe.json")
    one_line(error)


def test_aliases_in_moderation_are_read():
    assert foreign.parse_yaml("a: &a [1, 2]\nb: [*a, *a]\n")["b"] == [[1, 2], [1, 2]]


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "x" * 101, SCRIPT, "a\0b", "a\nb"])
def test_names_of_searches_that_lead_elsewhere(tmp_path, name):
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH | {"name": name}))
    with pytest.raises(BadSearch) as error:
        config.load(tmp_path / "search.yaml")
    assert "name" in one_line(error)


# ---------------------------------------------------------------- task folders


@pytest.mark.parametrize("text", ["x: !!python/object/apply:os.system [id]\n", LAUGHS + "y: !function evil.run\n"])
def test_code_in_a_task_file_is_found_however_it_is_wrapped(tmp_path, text):
    from evaluators.task_files import _foreign_tags

    assert any(
        "function" in tag or "python" in tag for tag in _foreign_tags(yaml.compose(text, Loader=yaml.SafeLoader))
    )


TASK = "task: t\ndataset_path: json\noutput_type: generate_until\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ((TASK + "x: " + DEEP_YAML).encode(), "nested too deeply"),
        (TASK.encode() + b"description: \xff\xfe\n", "cannot be read"),
        ((TASK + "include: ../../../../../../etc/passwd\n").encode(), "cannot be read"),
        ((TASK + "include: t.yaml\n").encode(), "cannot be read: Include cycle"),
        (b"- 1\n- 2\n", "cannot be read"),
        (b"task: t\0", "cannot be read"),
    ],
    ids=["deep", "no text", "elsewhere", "circle", "list", "nul"],
)
def test_a_task_file_that_is_none(tmp_path, content, expected):
    (tmp_path / "t.yaml").write_bytes(content)
    assert expected in refused_task(tmp_path)


def test_task_files_that_are_links(tmp_path):
    (tmp_path / "t.yaml").symlink_to("/etc/passwd")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "self").symlink_to(tmp_path)
    assert "cannot be read" in refused_task(tmp_path)


def refused_task(folder):
    from evaluators.errors import TaskError
    from evaluators.objective import EvaluationSettings, Objective
    from evaluators.tasks import TaskSuite

    with pytest.raises(TaskError) as error:
        TaskSuite.load([Objective(task="t")], EvaluationSettings(include_path=(str(folder),)))
    return one_line(error)


# ---------------------------------------------------------------- rows of a database


@pytest.fixture
def record(tmp_path):
    """A finished search whose rows a test may change; returns its storage and how to change it."""
    file = search_file(tmp_path, budget={"evaluations": 12, "finalists": 3})
    finish(file)

    def change(statement, *values):
        with sqlite3.connect(tmp_path / "evomerge.db") as connection:
            connection.execute(statement, values)

    return file.storage, change


def read(storage):
    return Results.of(Store(storage).search("fake"))


def test_names_with_markup_are_text_in_the_report(record, tmp_path):
    from evomerge.report import write_report

    storage, change = record
    change("update candidates set name = ? where number = 1", SCRIPT + "x" * 10_000)
    change("update evaluations set failure_message = ? where id = 2", SCRIPT)
    write_report(read(storage), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in text
    assert SCRIPT not in text


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("update candidates set recipe = ?", DEEP_JSON),
        ("update candidates set recipe = ?", '{"sources": [{"path": "../../etc"}]}'),
        ("update candidates set genome = ?", b"\x80\x04\x95not a pickle that anybody reads."),
        ("update candidates set parents = ?", DEEP_JSON),
        ("update evaluations set cost = ?", DEEP_JSON),
        ("update evaluations set stopped = ?", '{"a": 1}'),
        ("update searches set file = ?", "[]"),
        ("update searches set plan = ?", DEEP_JSON),
        ("update searches set plan = json_set(plan, '$.plugins', ?)", SCRIPT),
        ("update searches set plan = json_set(plan, '$.documents', ?)", SCRIPT),
        ("update evaluations set failure_message = cast(? as text)", b"\xff\xfe"),
        ("update scores set documents = ?", b"f\x01"),
    ],
)
def test_rows_that_nobody_wrote(record, tmp_path, statement, value):
    from evomerge import tables
    from evomerge.optuna_view import export_study
    from evomerge.tabular import write_tables

    storage, change = record
    change(statement, value)
    try:
        results = read(storage)
        write_tables(results, tmp_path / "tables", "csv")
        export_study(results, str(tmp_path / "x.journal"))
        lines = [*tables.status_lines(results), *(json.dumps(tables.candidate_json(results, c)) for c in results.front)]
        assert all(SCRIPT not in line for line in lines)
    except UserMistake as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("workers", "seen"),
    [
        (DEEP_JSON, 1.0),
        ("3", 1.0),
        ("[]", "yesterday"),
        ("[]", 1e300),
        ('[{"doing": "busy", "host": 3, "node": null, "process": "x", "since": "now"}]', 1.0),
        ('{"seats": [], "crowd": ["many", 1e400]}', 1.0),
        (json.dumps([{"doing": SCRIPT, "host": SCRIPT, "node": "", "process": 1, "since": 0.0}]), 1.0),
    ],
)
@pytest.mark.parametrize("driven", [True, False])
def test_workers_that_nobody_wrote(record, workers, seen, driven):
    from evomerge import tables
    from evomerge.dashboard import callbacks, parts
    from evomerge.dashboard.live import Live

    storage, change = record
    change("delete from evaluations where split = 'test'")
    change("insert into crews values (1, ?, ?)", workers, seen)
    results = read(storage)
    with results.record.store.driving("fake") if driven else nullcontext():
        for page in (callbacks.page(Live(storage), "/"), callbacks.page(Live(storage), "/search/fake")):
            assert page
        try:
            assert len(tables.status_lines(results)[0]) < 100
            assert json.dumps(tables.status_json(results))
            parts.workers_table(results)
        except UserMistake as error:
            assert "\n" not in str(error)
