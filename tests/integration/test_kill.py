"""kill -9 at any moment: the same command continues, and nothing that was finished is lost or done twice."""

import os
import signal
import sqlite3
import time

import psutil
import pytest

pytestmark = pytest.mark.slow


def genomes(results):
    return [c.genome for c in results.candidates if c.origin == "optimizer"]


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def evaluations(driver):
    with sqlite3.connect(driver.folder / "evomerge.db") as connection:
        return connection.execute("select id, candidate_id, split from evaluations order by id").fetchall()


LONG = {"evaluations": 10_000}  # no search of a test comes to its end


@pytest.fixture(scope="module")
def unbroken(sketch, tmp_path_factory):
    from integration_driver import Driver

    driver = Driver(tmp_path_factory.mktemp("unbroken"))
    driver.write(sketch)
    driver.run("run", "search.yaml")
    return driver.results()


@pytest.mark.parametrize("kills", [(4,), (15, 31, 52)])
def test_killed_in_process_it_continues_with_the_same_genomes(driver, sketch, unbroken, kills):
    driver.write(sketch)
    for count in kills:
        process = driver.start("run", "search.yaml")
        driver.wait_until_spent(count, process)
        kill(process)
    before = evaluations(driver)
    driver.run("run", "search.yaml")
    after = evaluations(driver)
    assert after[: len(before)] == before
    assert len({row[1:] for row in after}) == len(after)
    results = driver.results()
    assert genomes(results) == genomes(unbroken)
    assert results.winner.recipe_digest == unbroken.winner.recipe_digest
    for ours, theirs in zip(results.candidates, unbroken.candidates, strict=True):
        for split, evaluation in theirs.evaluations.items():
            assert ours.evaluations[split].scores == evaluation.scores


def test_driver_and_ray_worker_killed(driver, sketch):
    driver.write(sketch, cluster={"backend": "ray", "workers": 2}, budget={"evaluations": 200, "finalists": 4})
    process = driver.start("run", "search.yaml")
    driver.wait_until_spent(10, process)
    family = psutil.Process(process.pid).children(recursive=True)
    worker = next(p for p in family if "WorkerHost" in " ".join(p.cmdline()) or "WorkerHost" in p.name())
    worker.kill()
    driver.wait_until_spent(20, process)
    # Two of Ray's own agents notice a dead driver only after a minute and then end too; they hold no model.
    family = [p for p in psutil.Process(process.pid).children(recursive=True) if "Agent" not in p.name()]
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    before = evaluations(driver)
    driver.run("run", "search.yaml")
    results = driver.results()
    assert evaluations(driver)[: len(before)] == before
    assert results.spent == 200
    assert results.failures == {}
    assert results.state == "finished"


def test_interrupt_stops_cleanly_and_says_how_to_continue(driver, sketch):
    driver.write(sketch, budget=LONG)
    process = driver.start("run", "search.yaml")
    driver.wait_until_spent(5, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "Run the same command again to continue" in error
    assert "Traceback" not in error


def test_a_second_driver_is_refused_and_the_first_goes_on(driver, sketch):
    driver.write(sketch, budget=LONG)
    first = driver.start("run", "search.yaml")
    driver.wait_until_spent(1, first)
    done = driver.run("run", "search.yaml", status=2)
    assert f"being run by another process (process {first.pid} on " in done.stderr
    spent = driver.spent()
    driver.wait_until_spent(spent + 1, first)
    kill(first)
    time.sleep(0.1)
    driver.run("status", "small")
