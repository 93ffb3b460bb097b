"""Fakes of the world around a search: a worker whose scores follow from the recipe, and a problem for it."""

import heapq
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.pool import Finished, Returned
from evaluators.blockwise import BlockwiseEvaluator
from evaluators.evaluation import Cost, Documents, Evaluation, Failure, FailureKind, Score
from evaluators.objective import Objective
from evaluators.splits import Splits
from evomerge.config import SearchFile
from evomerge.inspection import Inspection
from evomerge.problem import Problem, make_space
from evomerge.stopping import Stopping
from search_spaces.mosaic import MosaicAlgebra
from search_spaces.mosaic_space import MosaicSpace
from search_spaces.path_space import path_space
from search_spaces.recipe import Recipe, Source
from search_spaces.tiles import TileGrid

OBJECTIVES = (Objective(task="first"), Objective(task="second"))
TARGETS = {"first/acc": np.array([0.2, 1.1]), "second/acc": np.array([1.0, 0.4])}
DOCUMENTS = {"search": range(0, 40), "validation": range(40, 80), "test": range(80, 160)}


@dataclass(frozen=True)
class FakeSpec:
    """Makes workers that score a recipe by the distance of its mean weights from each objective's target."""

    fail_above: float = np.inf  # first weight above which a candidate fails
    raise_above: float = np.inf
    seconds: float = 0.0
    brake: str | None = None  # evaluations take `seconds` only while this file is there
    kill_after: int | None = None  # calls after which the worker's process kills itself
    hang: str | None = None  # a worker that finds this file takes it away and never returns

    def __call__(self):
        return FakeWorker(self)


class FakeWorker:
    def __init__(self, spec):
        self.spec = spec
        self.calls = 0

    def evaluate(self, recipe_json, ids, race=None, as_exported=False):
        self.calls += 1
        if self.spec.seconds and (self.spec.brake is None or Path(self.spec.brake).exists()):
            time.sleep(self.spec.seconds)
        if self.calls == self.spec.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.spec.hang and take_away(Path(self.spec.hang)):
            threading.Event().wait()
        weights = mean_weights(Recipe.model_validate_json(recipe_json))
        if weights[0] > self.spec.raise_above:
            raise ZeroDivisionError("the worker stumbled")
        if weights[0] > self.spec.fail_above:
            return Failure(FailureKind.NON_FINITE, "logits of document 3 are not finite")
        documents = Documents(dict(ids))
        if race is None:
            return FakeEvaluator().evaluate(weights, documents)
        blockwise = BlockwiseEvaluator(FakeEvaluator(), OBJECTIVES)
        return blockwise.evaluate(weights, documents, race)

    def evaluate_smooth(self, recipe_json, ids):
        self.calls += 1
        weights = mean_weights(Recipe.model_validate_json(recipe_json))
        return FakeEvaluator(smooth=True).evaluate(weights, Documents(dict(ids)))


def take_away(file):
    """Whether there was such a file; only one of many workers is told so."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


@dataclass(frozen=True)
class FakeEvaluator:
    """Its models are weights."""

    smooth: bool = False

    def evaluate(self, model, documents):
        scores = {
            name: score(model, target, documents.ids[task], smooth=self.smooth)
            for name, target in TARGETS.items()
            if (task := name.split("/")[0]) in documents.ids
        }
        return Evaluation(documents.digest, scores, {"first/acc": 0.5}, Cost(documents=documents.count))


def mean_weights(recipe):
    """Mean over the blocks of the two experts' weights; those of `linear` begin with the base's. Of a mosaic, the mean
    over the tiles; of a path, the mean over the hops of the scale times those of their slots."""
    if recipe.body.kind == "path":
        slots = [mean_weights(recipe.slot(number)) for number in range(len(recipe.body.slots))]
        return np.mean([hop.scale * slots[hop.slot] for hop in recipe.body.hops], axis=0)
    if recipe.body.kind == "mosaic":
        means = [np.diff(c.boundaries) @ np.array(c.coefficients) / c.boundaries[-1] for c in recipe.body.chromosomes]
        return np.mean(means, axis=0)[-2:]
    return np.mean([block.operator.weights[-2:] for block in recipe.body.blocks], axis=0)


def score(weights, target, ids, *, smooth=False):
    """Documents have thresholds spread over [0, 1]; a model solves those below its quality, smoothly if asked."""
    quality = 1.0 / (1.0 + 3.0 * float(np.square(weights - target).sum()))
    thresholds = (np.array(ids) * 0.6180339887) % 1.0
    solved = 1.0 / (1.0 + np.exp(5.0 * (thresholds - quality))) if smooth else (thresholds < quality).astype(float)
    return Score(float(solved.mean()), float(solved.std(ddof=1) / np.sqrt(len(solved))), solved)


def search_file(folder: Path, **changes) -> SearchFile:
    value = {
        "name": "fake",
        "sources": {"base": "./base", "experts": ["./one", "./two"]},
        "space": {"layer_groups": 2},
        "objectives": [{"task": "first"}, {"task": "second"}],
        "optimizer": {"seed": 3},
        "budget": {"evaluations": 40, "finalists": 5},
        "baselines": {"single_coefficient": 4},
        "cluster": {"backend": "in_process", "workers": 1},
        "storage": f"sqlite:///{folder}/evomerge.db",
        **changes,
    }
    return SearchFile.model_validate(value)


def mosaic_space(file, sources):
    """Random sources of 20 tiles, the first 8 in a chromosome of their own."""
    weights = np.random.default_rng(0).normal(size=(20, 3, file.space.tile))
    sizes = {"attn": 8 * file.space.tile, "mlp": 12 * file.space.tile}
    grid = TileGrid.of(sizes, file.space.tile, file.space.layout(sorted(sizes)))
    algebra = MosaicAlgebra(grid, weights @ weights.transpose(0, 2, 1), sphere=file.space.sphere)
    return MosaicSpace(file.space, sources, ("one", "two"), 4, algebra)


def space_of(file, sources):
    match file.space.kind:
        case "parameter":
            return make_space(file, sources, layers=4)
        case "mosaic":
            return mosaic_space(file, sources)
        case _:
            return path_space(file.space, sources=sources, expert_names=("one", "two"), layers=4)


def problem(file: SearchFile) -> Problem:
    sources = tuple(Source(path=f"/{name}", digest=name[0] * 64) for name in ("base", "one", "two"))
    documents = {split: Documents({"first": tuple(ids), "second": tuple(ids)}) for split, ids in DOCUMENTS.items()}
    return Problem(
        file=file,
        space=space_of(file, sources),
        folders=(Path("/base"), Path("/one"), Path("/two")),
        model_bytes=1000,
        splits=Splits(**documents),
        suite_digest="s" * 64,
        inspection=Inspection(("one", "two"), False, 10, (0, 1), np.ones((2, 3, 6, 3))),
    )


class UnequalWorkers:
    """A pool in simulated time: worker i takes 10^(i/workers) times as long as the first; calls run when they return.

    `busy_when_waiting` holds how many workers had a call each time that the driver waited; `order` the tickets in the
    order in which they came back.
    """

    def __init__(self, worker, workers):
        self.worker, self.workers = worker, workers
        self.idle = list(range(workers))
        self.out = []  # heap of (end, ticket, worker, call)
        self.now, self.submitted = 0.0, 0
        self.busy_when_waiting, self.order = [], []

    @property
    def free(self):
        return len(self.idle)

    def submit(self, call):
        worker = self.idle.pop(0)
        heapq.heappush(self.out, (self.now + 10.0 ** (worker / self.workers), self.submitted, worker, call))
        self.submitted += 1
        return self.submitted - 1

    def wait(self, timeout_seconds=None):
        self.busy_when_waiting.append(len(self.out))
        self.now, ticket, worker, call = heapq.heappop(self.out)
        self.idle.append(worker)
        self.order.append(ticket)
        return [Finished(ticket, Returned(getattr(self.worker, call.method)(*call.arguments)))]

    def need(self, calls):
        self.needed = calls

    def close(self):
        self.out.clear()


def followed(budget, objectives, candidates, preference=None, *, documents):
    """The stopping rules after all that was told, one evaluation after another, as a search follows them."""
    stopping = Stopping(budget, objectives, preference, documents=documents)
    told = [c for c in candidates if "search" in c.evaluations and c.evaluations["search"].told_at is not None]
    for candidate in sorted(told, key=lambda c: c.evaluations["search"].told_at):
        stopping.add(candidate)
    return stopping
