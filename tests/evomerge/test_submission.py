"""What travels to a cluster and what is refused."""

import os

import pytest
import yaml
from fakes import search_file

from cluster.jobs import Job, Jobs, JobsError
from evomerge import submission
from evomerge.config import load
from evomerge.errors import BadSearch
from evomerge.submission import SEARCH_TAG, check_submittable, environment_of, find_job, packed

SHARED = "postgresql://ann@db.local/merges"


@pytest.fixture
def home(tmp_path):
    """A search file with a task folder beside it, one elsewhere, and a text."""
    home = tmp_path / "home"
    for folder in (home / "tasks", tmp_path / "elsewhere" / "tasks"):
        folder.mkdir(parents=True)
        (folder / "one.yaml").write_text("task: one")
        (folder / ".secret").write_text("hidden")
    (home / "unrelated.txt").write_text("stays")
    (home / "book.txt").write_text("A text.")
    value = search_file(tmp_path, storage=SHARED).model_dump(mode="json")
    value["evaluation"]["include_path"] = ["tasks", "../elsewhere/tasks"]
    value["evaluation"]["trusted_paths"] = ["tasks"]
    value["objectives"] += [{"kind": "perplexity", "file": "book.txt"}]
    value["cluster"] = {"backend": "ray"}
    (home / "search.yaml").write_text(yaml.safe_dump(value))
    return home


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_search_file_and_what_it_names_travel_and_nothing_else(home):
    file = load(home / "search.yaml")
    with packed(file, home) as folder:
        assert files(folder) == {"search.yaml", "tasks/one.yaml", "packed/1/tasks/one.yaml", "book.txt"}
        there = load(folder / "search.yaml")
        assert there.fixed_part() == file.fixed_part()
        assert there.evaluation.include_path == (str(folder / "tasks"), str(folder / "packed/1/tasks"))
        assert there.evaluation.trusted_paths == (str(folder / "tasks"),)
        assert there.storage == SHARED
    assert not folder.exists()


def test_links_out_of_a_task_folder_do_not_travel(home):
    (home / "tasks" / "link").symlink_to("/etc/hostname")
    with pytest.raises(BadSearch, match="link that leads out"), packed(load(home / "search.yaml"), home):
        pass


def test_too_much_is_refused(home, monkeypatch):
    monkeypatch.setattr(submission, "MOST_BYTES", 10)
    with (
        pytest.raises(BadSearch, match="put the data where all nodes see it"),
        packed(load(home / "search.yaml"), home),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"storage": "sqlite:///evomerge.db"}, "nobody else could read SQLite"),
        ({"storage": "postgresql://ann:secret@db/m"}, "PGPASSWORD on the cluster's nodes"),
        ({"storage": "postgresql://ann@db/m?password=secret"}, "PGPASSWORD on the cluster's nodes"),
        ({"cluster": {"backend": "in_process"}}, "cluster.backend"),
    ],
)
def test_searches_that_cannot_run_as_jobs(tmp_path, change, expected):
    file = search_file(tmp_path, **{"storage": SHARED, "cluster": {"backend": "ray"}, **change})
    with pytest.raises(BadSearch, match=expected) as error:
        check_submittable(file)
    assert "secret" not in str(error.value)


def test_a_url_in_a_variable_of_the_cluster_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("MERGES", raising=False)
    check_submittable(search_file(tmp_path, storage="env:MERGES", cluster={"backend": "ray"}))


def test_variables_by_value_or_by_name(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/models")
    assert environment_of(["HF_HOME", "A=b=c"]) == {"HF_HOME": "/models", "A": "b=c"}


@pytest.mark.parametrize("text", ["NOT_SET_ANYWHERE", "=x", "HF_TOKEN=x", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY=x"])
def test_secrets_and_variables_without_a_value_are_refused(text):
    with pytest.raises(BadSearch, match="--env") as error:
        environment_of([text])
    assert "=x" not in str(error.value) or text == "=x"


def test_jobs_are_found_by_id_and_by_search():
    jobs = [
        Job("a-1", "failed", tags={SEARCH_TAG: "a"}),
        Job("a-2", "running", tags={SEARCH_TAG: "a"}),
        Job("x", "failed"),
    ]
    assert find_job(jobs, "a-1").id == "a-1"
    assert find_job(jobs, "a").id == "a-2"
    with pytest.raises(BadSearch, match=r"no job and no search 'b' .*: a\)"):
        find_job(jobs, "b")


@pytest.mark.parametrize(
    ("address", "expected"),
    [("head:8265", "URL of the cluster's dashboard"), ("http://127.0.0.1:9", "does the head run")],
)
def test_addresses_without_a_cluster(address, expected, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "some")  # Ray keeps for a process whether there was one
    before = dict(os.environ)
    with pytest.raises(JobsError, match=expected) as error:
        Jobs(address)
    assert "\n" not in str(error.value)
    assert dict(os.environ) == before
