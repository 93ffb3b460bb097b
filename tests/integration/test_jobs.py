"""Searches as jobs of a real Ray head with token authentication, their record on a real PostgreSQL server."""

import json
import os
import time
from contextlib import closing

import pytest
from postgres_server import PASSWORD

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head(postgres):
    from ray_head import RayHead

    with closing(RayHead(cpus=2, variables={"PGPASSWORD": PASSWORD, "OMP_NUM_THREADS": "1"})) as head:
        yield head


@pytest.fixture
def user(head, driver, monkeypatch):
    """The command line of somebody who may use the cluster and the database."""
    for name, value in {
        "RAY_API_SERVER_ADDRESS": head.address,
        "RAY_AUTH_TOKEN": head.token,
        "PGPASSWORD": PASSWORD,
    }.items():
        monkeypatch.setenv(name, value)
    driver.environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return driver


def until(true, seconds=240):
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.5)


def test_a_search_is_submitted_watched_stopped_and_continued(user, sketch, postgres):
    storage = postgres.new_database().replace(f":{PASSWORD}", "")
    settings = {"cluster": {"backend": "ray", "workers": 1}, "storage": storage}
    user.write(sketch, **settings, budget={"evaluations": 100_000, "finalists": 2})
    assert "submitted job small-1" in user.run("submit", "search.yaml").stdout

    def spent():
        done = user.start("status", "small", "--storage", storage, "--json")
        out, _ = done.communicate()
        return json.loads(out)["evaluations"] if done.returncode == 0 else 0

    until(lambda: spent() >= 8)
    again = user.run("submit", "search.yaml", status=2)
    assert "search 'small' is running as job small-1" in again.stderr
    assert "small: search" in user.run("logs", "small").stdout
    assert user.run("stop", "small").stdout == "job small-1: stopped\n"
    before = spent()
    assert before >= 8

    user.write(sketch, **settings, budget={"evaluations": before + 4, "finalists": 2})
    followed = user.run("submit", "search.yaml", "--follow")
    assert f"{before} of them recorded" in followed.stdout
    assert "winner" in followed.stdout
    assert "job small-2: succeeded" in followed.stderr
    assert spent() == before + 4
    jobs = json.loads(user.run("jobs", "--json").stdout)
    assert [(job["id"], job["state"]) for job in jobs] == [("small-1", "stopped"), ("small-2", "succeeded")]
    user.run("export", "small", "--storage", storage, "--format", "recipe", "--to", "recipe.json")


def test_without_the_token_nothing_is_done(user, sketch, monkeypatch):
    user.environment["RAY_AUTH_TOKEN"] = "wrong"
    done = user.run("jobs", status=2)
    assert "give this cluster's token" in done.stderr
