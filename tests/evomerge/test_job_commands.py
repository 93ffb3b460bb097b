"""submit, jobs, logs and stop against a Jobs API without Ray."""

import json
import os
from contextlib import closing

import pytest
import yaml
from fake_jobs_api import FakeJobsApi
from fakes import search_file

from cluster.jobs import JobExists, JobRequest, Jobs
from evomerge import cli

SHARED = "postgresql://ann@db.local/merges"


@pytest.fixture
def api(monkeypatch):
    with closing(FakeJobsApi()) as api:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", api.address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", api.token)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        yield api


@pytest.fixture
def search(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "one.yaml").write_text("task: one")
    value = search_file(tmp_path, storage=SHARED).model_dump(mode="json")
    value["cluster"] = {"backend": "ray"}
    value["evaluation"]["include_path"] = ["tasks"]
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["evomerge", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return call


def test_a_search_is_submitted_once_and_again_when_its_job_is_over(api, search, run):
    status, out, _ = run("submit", search, "--env", "A=b")
    assert (status, "submitted job fake-1" in out) == (0, True)
    job = api.jobs["fake-1"]
    assert job["metadata"]["evomerge.search"] == "fake"
    assert job["metadata"]["evomerge.storage"] == SHARED
    assert job["runtime_env"]["env_vars"] == {"A": "b"}
    assert job["entrypoint"] == "python -m evomerge.job search.yaml"
    assert job["entrypoint_num_cpus"] == 1
    assert api.packages == [["search.yaml", "tasks/one.yaml"]]
    status, _, err = run("submit", search)
    assert (status, "'fake' is running as job fake-1" in err) == (2, True)
    api.end("fake-1", "FAILED")
    assert "submitted job fake-2" in run("submit", search)[1]


def test_jobs_logs_and_stop(api, search, run):
    assert "no searches on this cluster" in run("jobs")[1]
    run("submit", search)
    assert json.loads(run("jobs", "--json")[1]) == [
        {"search": "fake", "id": "fake-1", "state": "running", "started": 1.0, "ended": None, "message": ""}
    ]
    assert run("logs", "fake")[1] == "one\ntwo\nthree\n"
    assert run("stop", "fake")[1] == "job fake-1: stopped\n"
    assert run("stop", "fake-1")[1] == "job fake-1 is over: stopped\n"
    status, _, err = run("logs", "other")
    assert (status, "searches there: fake" in err) == (2, True)


def test_following_prints_everything_and_ends_with_the_job(api, search, run):
    status, out, err = run("submit", search, "--follow")
    assert (status, out.endswith("one\ntwo\nthree\n"), "job fake-1: succeeded" in err) == (0, True, True)


def test_two_submissions_at_the_same_time(api, search, tmp_path):
    with closing(Jobs(api.address)) as jobs:
        request = JobRequest("same", ("true",), search.parent)
        jobs.submit(request)
        with pytest.raises(JobExists):
            jobs.submit(request)


def test_a_wrong_token_is_said_and_nothing_of_ours_stays_in_the_environment(api, run, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    before = dict(os.environ)
    status, _, err = run("jobs")
    assert (status, "give this cluster's token" in err) == (2, True)
    assert dict(os.environ) == before
