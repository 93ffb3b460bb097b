"""What users get wrong, through the command line: one line, status 2, before anything is spent or written."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from evomerge import cli

pytestmark = pytest.mark.slow


@pytest.fixture
def attempt(driver, sketch, monkeypatch, capsys, tmp_path):
    """Run a search file whose mapping ``change`` has changed; return the one line it is refused with."""

    def call(change):
        value = driver.write(sketch)
        change(value)
        (driver.folder / "search.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["evomerge", "run", "search.yaml"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        error = capsys.readouterr().err
        line = error.splitlines()[-1]
        assert stop.value.code == 2, error
        assert line.startswith("evomerge: ")
        assert "Traceback" not in error
        if (tmp_path / "evomerge.db").exists():
            from evomerge.store import Store

            assert Store(f"sqlite:///{tmp_path}/evomerge.db").searches() == []
        return line

    return call


def expert_copy(value, tmp_path):
    copy = tmp_path / "expert"
    shutil.copytree(value["sources"]["experts"][0], copy)
    value["sources"]["experts"][0] = str(copy)
    return copy


def test_unknown_task_suggests_near_ones(attempt):
    def change(value):
        value["objectives"][0]["task"] = "rev_jj"

    assert "rev_j" in attempt(change)


def test_unknown_metric_lists_the_tasks_metrics(attempt):
    def change(value):
        value["objectives"][0]["metric"] = "bleu"

    assert "exact_match" in attempt(change)


def test_too_few_documents_says_how_many_there_are(attempt):
    def change(value):
        value["evaluation"]["test_documents"] = 100_000

    assert "100160" in attempt(change) or "100096" in attempt(change)


def test_overlapping_ranges_are_refused(attempt):
    def change(value):
        value["evaluation"] |= {
            "search_documents": "0:50",
            "validation_documents": "40:90",
            "test_documents": "100:200",
        }

    line = attempt(change)
    assert "0:50" in line
    assert "40:90" in line


def test_a_missing_model_folder(attempt):
    def change(value):
        value["sources"]["base"] = "./not-there"

    assert "not-there" in attempt(change)


def test_a_folder_without_safetensors(attempt, tmp_path):
    def change(value):
        (expert_copy(value, tmp_path) / "model.safetensors").unlink()

    assert "safetensors" in attempt(change)


def test_a_pickle_checkpoint_is_refused(attempt, tmp_path):
    def change(value):
        copy = expert_copy(value, tmp_path)
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")

    line = attempt(change)
    assert "pytorch_model.bin" in line or "pickle" in line


def test_a_truncated_safetensors_file(attempt, tmp_path):
    def change(value):
        path = expert_copy(value, tmp_path) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])

    assert "model.safetensors" in attempt(change)


def test_another_vocabulary(attempt, tmp_path):
    def change(value):
        path = expert_copy(value, tmp_path) / "tokenizer.json"
        path.write_text(path.read_text(encoding="utf-8").replace('"sort"', '"tros"', 1), encoding="utf-8")

    assert "vocabular" in attempt(change)


def test_more_workers_than_memory(attempt):
    def change(value):
        value["cluster"] = {"backend": "in_process", "workers": 100_000}

    assert "GiB" in attempt(change)


def test_slerp_of_more_than_two(attempt):
    def change(value):
        value["space"] = {"operator": "slerp"}
        value["sources"]["experts"].append({"path": value["sources"]["base"], "name": "third"})

    assert "slerp merges exactly two experts" in attempt(change)


def test_a_task_with_python_in_an_untrusted_folder(attempt, sketch, tmp_path):
    tasks = tmp_path / "tasks"
    shutil.copytree(sketch.tasks, tasks)
    marker = Path(tmp_path / "it-ran")
    (tasks / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndef f(doc): return ''\n")
    text = (
        (tasks / "rev_j.yaml")
        .read_text(encoding="utf-8")
        .replace('doc_to_text: "{{prompt}}"', "doc_to_text: !function evil.f")
    )
    (tasks / "rev_j.yaml").write_text(text, encoding="utf-8")

    def change(value):
        value["evaluation"]["include_path"] = [str(tasks)]

    assert "trusted_paths" in attempt(change)
    assert not marker.exists()
