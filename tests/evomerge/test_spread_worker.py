"""Workers with several GPUs, which are pretended: what `check` says, what is refused, and that scores do not change."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import FakeSpec, problem, search_file
from pretend_devices import pretended

from evaluators.evaluation import Evaluation
from evaluators.objective import EvaluationSettings, Objective
from evomerge import estimate
from evomerge.errors import BadSearch, NotEnoughRoom
from evomerge.estimate import _report
from evomerge.merging.observation import default_device
from evomerge.runner import Machine, find_machine, worker_bytes
from evomerge.worker import WorkerSpec
from search_spaces.operators import TaskArithmetic
from search_spaces.recipe import Block, Blocks, Hop, PathBody, Recipe, Source
from search_spaces.seeds import base_recipe

TWO = ("cuda:0", "cuda:1")


def machine(tmp_path, monkeypatch, *, gpus, there=4, **cluster):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    file = search_file(tmp_path, cluster={"gpus_per_worker": gpus, **cluster})
    return find_machine(file.cluster, problem(file))


def test_a_worker_gets_the_devices_that_it_sees(tmp_path, monkeypatch):
    assert machine(tmp_path, monkeypatch, gpus=2) == Machine(TWO, workers=2, threads=1, gpus=2.0)
    assert machine(tmp_path, monkeypatch, gpus=3) == Machine((*TWO, "cuda:2"), workers=1, threads=1, gpus=3.0)
    assert machine(tmp_path, monkeypatch, gpus=2, backend="in_process").workers == 1
    assert machine(tmp_path, monkeypatch, gpus=1).device == machine(tmp_path, monkeypatch, gpus=0.5).device == "cuda"


def test_more_gpus_than_there_are_is_refused(tmp_path, monkeypatch):
    for there in (0, 2):
        with pytest.raises(BadSearch, match=f"cluster.gpus_per_worker: 4 GPUs for each worker, but {there} are here"):
            machine(tmp_path, monkeypatch, gpus=4, there=there)


def test_workers_of_one_process_do_not_share_several_gpus(tmp_path, monkeypatch):
    with pytest.raises(BadSearch, match="2 workers of one process would share the same 2 GPUs; ask for one, or for"):
        machine(tmp_path, monkeypatch, gpus=2, backend="in_process", workers=2)


def test_check_says_that_the_gpus_are_elsewhere(tmp_path, monkeypatch):
    file = search_file(tmp_path)
    monkeypatch.setattr(estimate, "prepare", lambda *_, **__: problem(file))
    monkeypatch.setattr(estimate, "find_machine", lambda *_: Machine(TWO, 3, 1, 2.0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadSearch, match="with the 2 GPUs of a worker, and this machine has 1: run it on a"):
        estimate.estimate(file, say=lambda _: None)


def test_a_model_on_gpus_takes_no_memory_of_the_machine(tmp_path):
    made = replace(problem(search_file(tmp_path)), model_bytes=1 << 50)
    assert worker_bytes(made, Machine(TWO, 1, 1, 2.0)) < 1 << 40 < worker_bytes(made, Machine("cpu", 1, 1))


def test_statistics_are_computed_where_models_fit(monkeypatch):
    with pretended(monkeypatch, free={0: 1, 1: 1}):
        assert default_device(2.0) == TWO
        assert default_device(4.0) == default_device(0.5) == default_device() == "cuda"


# ------------------------------------------------------------------------------------------------------ real workers


@pytest.fixture
def spec(sketch):
    task = next(path.stem for path in sorted(sketch.tasks.glob("*_mc.yaml")))
    objectives = (Objective(task=task), Objective(task=task.removesuffix("_mc"), metric="exact_match"))
    folders = (sketch.base, *sketch.experts.values())
    return WorkerSpec(
        folders=tuple(map(str, folders)),
        tokenizer=0,
        dtype="float32",
        objectives=objectives,
        evaluation=EvaluationSettings(include_path=(str(sketch.tasks),), tokens_per_batch=512),
    )


def recipes(spec):
    sources = tuple(Source(path=folder) for folder in spec.folders)
    hops = (Hop(slot=0, layer=0), Hop(slot=1, layer=1, scale=0.9), Hop(slot=1, layer=0, scale=1.1))
    merge = Blocks(blocks=(Block(layers=(0, 99), operator=TaskArithmetic(weights=(0.4, 0.6))),))
    for body in (merge, PathBody(slots=(0, 1), hops=hops)):
        yield Recipe(sources=sources, dtype="float32", body=body)


def test_scores_of_a_worker_with_two_gpus_are_those_with_one(spec, monkeypatch, tmp_path):
    documents = {objective.task: tuple(range(12)) for objective in spec.objectives}
    with pretended(monkeypatch, free={0: 1 << 30, 1: 1 << 30}):
        one, two = replace(spec, device="cuda:0")(), replace(spec, device=TWO)()
        for recipe in recipes(spec):
            first, second = (worker.evaluate(recipe.to_json(), documents) for worker in (one, two))
            assert isinstance(first, Evaluation) and isinstance(second, Evaluation), second
            for name, score in first.scores.items():
                assert np.array_equal(score.documents, second.scores[name].documents)
            assert first.tie_breaks == second.tie_breaks
        made = problem(search_file(tmp_path))
        measured = FakeSpec()().evaluate(base_recipe(made.space).to_json(), made.splits.search.ids)
        report = replace(_report(made, Machine(TWO, 2, 1, 2.0), measured), placements=two.placements)
    lines = "\n".join(report.lines())
    assert "2 workers on 2 GPUs each" in lines
    assert "spread     cuda:0 0.00 of 1.00 GiB free: embeddings, norm, head" in lines
    assert "spread     cuda:1 0.00 of 1.00 GiB free: layers " in lines
    assert report.to_json()["placements"][0]["devices"] == TWO


def test_a_worker_says_at_once_that_a_model_does_not_fit(spec, monkeypatch):
    with (
        pretended(monkeypatch, free={0: 1 << 12, 1: 1 << 12}),
        pytest.raises(NotEnoughRoom, match="give each worker more GPUs, or larger ones"),
    ):
        replace(spec, device=TWO)()
