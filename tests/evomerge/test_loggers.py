"""Curves of running searches: what loggers are told, the real libraries, and loggers that fail."""

import sys
import threading
from contextlib import closing
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import FakeSpec, problem, search_file

from cluster.in_process import InProcessPool
from evomerge.dispatch import Dispatcher
from evomerge.errors import BadSearch
from evomerge.loggers import background, settings
from evomerge.loggers.background import Background
from evomerge.loggers.contract import LoggedSearch
from evomerge.loggers.settings import MlflowSettings, TensorBoardSettings, WandbSettings
from evomerge.loggers.watcher import LoggedWatcher, logged
from evomerge.optimizers.registry import make_optimizer
from evomerge.results import Results
from evomerge.search import Search
from evomerge.selection import conclude
from evomerge.store import Store
from evomerge.watcher import Silent


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, what):
        self.said.append(what)


class Kept:
    """A logger that keeps everything in the lists given."""

    def __init__(self, begun, points, ended):
        self.begun, self.points, self.ended = begun, points, ended

    def begin(self, search):
        self.begun.append(search)

    def log(self, step, values):
        self.points.append((step, dict(values)))

    def end(self):
        self.ended.append(True)


def drive(tmp_path, watcher, evaluations=12, **changes):
    """Run or continue a search of fakes; return its results."""
    budget = {"evaluations": evaluations, "finalists": 2}
    file = search_file(tmp_path, budget=budget, baselines={"single_coefficient": 0}, **changes)
    this = problem(file)
    with closing(Store(file.storage, create=True)) as store, closing(InProcessPool(FakeSpec(), workers=1)) as pool:
        record = store.find("fake") or store.create("fake", file=file.model_dump(mode="json"), plan=this.plan())
        optimizer = make_optimizer(file.optimizer, this.setting())
        watcher.search_begins(record, file)
        search = Search(this, record, optimizer, Dispatcher(pool, timeout_seconds=30), watcher)
        search.run()
        conclude(search)
        return Results.of(record)


def test_loggers_are_told_every_new_evaluation_and_the_best_so_far(tmp_path):
    begun, points, ended = [], [], []
    watcher = LoggedWatcher(Silent(), [Background("kept", lambda: Kept(begun, points, ended))])
    results = drive(tmp_path, watcher)
    watcher.close()
    assert [(search.name, search.step) for search in begun] == [("fake", 0)]
    assert ended == [True]
    searched = [(step, values) for step, values in points if "search/joint" in values]
    assert [step for step, _ in searched] == list(range(1, 13))
    scores = results.candidates.evaluations.values[results.fresh["search"]]
    logged_scores = [[values["search/first/acc"], values["search/second/acc"]] for _, values in searched]
    np.testing.assert_array_equal(logged_scores, scores)
    best = [values["best/first/acc"] for _, values in searched]
    assert best == np.maximum.accumulate(scores[:, 0]).tolist()
    tested = [values["test/first/acc"] for _, values in points if "test/first/acc" in values]
    assert len(tested) == len(results.candidates.evaluations.of("test"))


def test_a_continued_search_continues_its_curves(tmp_path):
    begun, points = [], []
    for evaluations in (12, 15):
        watcher = LoggedWatcher(Silent(), [Background("kept", lambda: Kept(begun, points, []))])
        drive(tmp_path, watcher, evaluations)
        watcher.close()
    assert [search.step for search in begun] == [0, 12]
    assert begun[0].key == begun[1].key
    searched = [(step, values) for step, values in points if "search/joint" in values]
    assert [step for step, _ in searched] == list(range(1, 16))
    best = [values["best/joint"] for _, values in searched]
    assert best == sorted(best)


def test_joint_is_on_the_scales_of_the_results(tmp_path):
    points = []
    watcher = LoggedWatcher(Silent(), [Background("kept", lambda: Kept([], points, []))])
    objectives = [{"task": "first", "weight": 2.0}, {"task": "second", "direction": "minimize"}]
    results = drive(tmp_path, watcher, evaluations=20, objectives=objectives)
    watcher.close()
    assert results.joint_is_scaled
    *_, last = (values for _, values in points if "search/joint" in values)
    joints = [results.estimate(c, "search")["joint"].value for c in results.candidates if "search" in c.evaluations]
    assert last["search/joint"] == pytest.approx(joints[-1])
    assert last["best/joint"] == pytest.approx(max(joints))


def test_a_logger_that_fails_is_said_once_and_the_search_goes_on(tmp_path):
    class Broken(Kept):
        def log(self, step, values):
            raise ConnectionError("the server\nis away")

    heard, points = Heard(), []
    loggers = [Background("broken", lambda: Broken([], [], [])), Background("kept", lambda: Kept([], points, []))]
    watcher = LoggedWatcher(heard, loggers)
    assert drive(tmp_path, watcher).state == "finished"
    watcher.close()
    assert heard.said == ["logging to broken has ended: ConnectionError: the server is away; the search goes on"]
    assert len(points) > 12


def test_a_logger_that_cannot_even_be_made_is_said(tmp_path):
    heard = Heard()
    watcher = LoggedWatcher(heard, [Background("none", lambda: 1 / 0)])
    assert drive(tmp_path, watcher).state == "finished"
    watcher.close()
    assert len(heard.said) == 1
    assert "ZeroDivisionError" in heard.said[0]


def test_a_logger_that_hangs_delays_nobody_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.05)
    released, heard = threading.Event(), Heard()

    class Hanging(Kept):
        def begin(self, search):
            released.wait()

    watcher = LoggedWatcher(heard, [Background("hanging", lambda: Hanging([], [], []))])
    assert drive(tmp_path, watcher).state == "finished"
    watcher.close()
    released.set()
    assert heard.said == ["logging to hanging has ended: it was not done 0.05 s after the search; the search goes on"]


def test_a_logger_that_falls_behind_is_given_up(monkeypatch):
    monkeypatch.setattr(background, "MOST_WAITING", 3)
    released = threading.Event()
    slow = Background("slow", lambda: released.wait() and Kept([], [], []))
    for _ in range(5):
        slow.call(lambda logger: logger.end())
    assert slow.fault == "it is 3 results behind"
    released.set()
    slow.close()


# ---------------------------------------------------------------- the libraries


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (folder / "runs").iterdir()
    events = EventAccumulator(str(run)).Reload()
    return [(point.step, round(point.value, 6)) for point in events.Scalars("search/gsm8k/exact_match,strict")]


def read_mlflow(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("evomerge").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["name"] == "ja"
    points = client.get_metric_history(run.info.run_id, "search/gsm8k/exact_match_strict")
    return [(point.step, point.value) for point in points]


LIBRARIES = {
    "tensorboard": (lambda folder: TensorBoardSettings(folder=str(folder / "runs")), read_tensorboard),
    "mlflow": (lambda folder: MlflowSettings(uri=f"sqlite:///{folder}/mlflow.db"), read_mlflow),
}


@pytest.mark.parametrize("kind", LIBRARIES)
def test_curves_come_back_from_the_library(kind, tmp_path, monkeypatch):
    if find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    monkeypatch.chdir(tmp_path)
    make, read_back = LIBRARIES[kind]
    for first, last in ((0, 3), (2, 5)):  # killed after a third point that the record does not hold
        logger = make(tmp_path).make()
        logger.begin(LoggedSearch("ja", "0123456789abcdef", first, {"name": "ja", "storage": "sqlite:///x.db"}))
        for step in range(first + 1, last + 1):
            logger.log(step, {"search/gsm8k/exact_match,strict": step / 8})
        logger.end()
    found = dict(read_back(tmp_path))
    assert found == {step: step / 8 for step in range(1, 6)}


class FakeRun:
    """What is used of a run of Weights & Biases, which has no way to read one that was kept offline."""

    def __init__(self, calls):
        self.calls = calls

    def define_metric(self, name, *, step_metric):
        self.calls.append(("define", name, step_metric))

    def log(self, values):
        self.calls.append(("log", values))

    def finish(self):
        self.calls.append(("finish",))


def test_wandb_runs_go_on_under_the_key_of_the_search(monkeypatch):
    calls = []

    def init(**about):
        calls.append(("init", about["id"], about["name"], about["mode"], about["resume"], about["config"]))
        return FakeRun(calls)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=SimpleNamespace))
    logger = WandbSettings(mode="offline").make()
    logger.begin(LoggedSearch("ja", "0123456789abcdef", 7, {"name": "ja"}))
    logger.log(8, {"search/a": 0.5})
    logger.end()
    assert calls == [
        ("init", "0123456789abcdef", "ja", "offline", "allow", {"name": "ja"}),
        ("define", "*", "evaluations"),
        ("log", {"evaluations": 8, "search/a": 0.5}),
        ("finish",),
    ]


# ---------------------------------------------------------------- the section


def test_loggers_are_named_or_have_settings(tmp_path):
    file = search_file(tmp_path, logging=["tensorboard", {"kind": "mlflow", "experiment": "ja"}])
    assert file.logging == (TensorBoardSettings(), MlflowSettings(experiment="ja"))
    with pytest.raises(ValueError, match="does not match any of the expected tags"):
        search_file(tmp_path, logging=["tensorbord"])
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD"):
        search_file(tmp_path, logging=[{"kind": "mlflow", "uri": "https://ann:secret@host"}])


def test_a_missing_library_is_said_before_anything_is_spent(monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    expected = r"logging: wandb is not installed; pip install 'evomerge\[wandb\]'"
    with pytest.raises(BadSearch, match=expected), logged(Silent(), [WandbSettings()]):
        pass


def test_without_loggers_the_record_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.loggers.watcher.Results", None)
    with logged(Silent(), ()) as watcher:
        drive(tmp_path, watcher)
