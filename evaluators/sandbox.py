"""Judging of tasks that execute what models write: in a helper process, each document under limits.

The helper (`evaluators.sandbox_server`) loads the task once and forks a child for every document. It has none of the
environment's secrets. This is a fence against accidents, not against an attacker: see docs/objectives.md.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import datasets
import numpy as np
from huggingface_hub.constants import HF_HOME

from evaluators.errors import MeasurementFailed, OverLimits, TaskError
from evaluators.evaluation import FailureKind, Score
from evaluators.judging import Judged
from evaluators.loaded import LoadedTask
from evaluators.metrics import is_mean
from evaluators.objective import EvaluationSettings, Objective
from evaluators.plan import TaskPart
from evaluators.scoring import LogLikelihoods

_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HF_MODULES_CACHE")


class SandboxedJudge:
    """Scores the answers to a task that executes them; takes the place of `Judge`."""

    def __init__(self, loaded: LoadedTask, part: TaskPart, settings: EvaluationSettings) -> None:
        """Prepare to judge ``part``; the helper starts with the first answers.

        Raises:
            TaskError: the score of a metric is no mean over documents, which are judged one by one.
        """
        for measure in loaded.measures:
            if not is_mean(loaded.task, measure.metric):
                raise TaskError(
                    f"objective {measure.name}: documents of a task that executes code are judged one by one, "
                    f"but {measure.metric} is no mean over documents"
                )
        self._part, self._settings = part, settings
        self._objectives = tuple(measure.objective for measure in loaded.measures)

    def judge(self, *, likelihoods: LogLikelihoods, texts: Sequence[str]) -> Judged:
        """Return the score of each of the task's metrics, and how many documents ran out of their limits and score 0.

        Arguments hold the answers of the whole plan.

        Raises:
            MeasurementFailed: a metric raised, the helper died, or a document ran out of its limits and a metric that
                is minimised has no score for that.
        """
        if not self._objectives:
            return Judged({}, {})
        helper = _helper(self._objectives, self._settings)
        mine, first = self._part.requests, 0
        given: Any = list(texts[mine]) if self._part.generates else _pairs(likelihoods, mine)
        found: dict[str, list[float]] = {objective.name: [] for objective in self._objectives}
        over_limits = 0
        for number, count in zip(self._part.documents, self._part.counts.tolist(), strict=True):
            answers = given[first : first + count]
            try:
                scores = helper.judge(number, answers, generates=self._part.generates)
            except OverLimits:
                if any(objective.direction == "minimize" for objective in self._objectives):
                    raise
                scores, over_limits = dict.fromkeys(found, 0.0), over_limits + 1
            for name, value in scores.items():
                found[name].append(value)
            first += count
        scored = {name: Score.mean_of(np.array(values)) for name, values in found.items()}
        return Judged(scored, {}, over_limits)


def _pairs(likelihoods: LogLikelihoods, mine: slice) -> list[list[Any]]:
    pairs = zip(likelihoods.values[mine].tolist(), likelihoods.greedy[mine].tolist(), strict=True)
    return [[value, greedy] for value, greedy in pairs]


class _Helper:
    """The helper process of one task, spoken to in lines of JSON."""

    def __init__(self, objectives: tuple[Objective, ...], settings: EvaluationSettings) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="evomerge-judge-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evaluators.sandbox_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self._folder.name,
            env=_environment(self._folder.name),
            start_new_session=True,
        )
        atexit.register(self.close)
        hello = {
            "objectives": [objective.model_dump(mode="json") for objective in objectives],
            "settings": settings.model_dump(mode="json"),
        }
        try:
            self._ask(hello)
        except MeasurementFailed:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def judge(self, document: int, answers: Sequence[Any], *, generates: bool) -> dict[str, float]:
        """Return the score of ``document`` for each objective.

        Raises:
            OverLimits: it ran out of its limits, or ended the process that judged it.
            MeasurementFailed: its metric raised, or the helper died.
        """
        scores = self._ask({"document": document, "answers": list(answers), "generates": generates})["scores"]
        return {str(name): float(value) for name, value in scores.items()}

    def close(self) -> None:
        """End it."""
        if self._process.stdin:
            self._process.stdin.close()  # it ends by itself, with what it has started
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise MeasurementFailed(FailureKind.METRIC_ERROR, "the process that judges executed code has died")
        answer: dict[str, Any] = json.loads(line)
        if failure := answer.get("failure"):
            kind = OverLimits if failure["over_limits"] else MeasurementFailed
            raise kind(FailureKind(failure["kind"]), str(failure["message"]))
        return answer


_HELPERS: dict[tuple[tuple[Objective, ...], EvaluationSettings], _Helper] = {}


def _helper(objectives: tuple[Objective, ...], settings: EvaluationSettings) -> _Helper:
    """Return the running helper of a task, a new one if it has died."""
    key = (objectives, settings)
    helper = _HELPERS.get(key)
    if helper is None or not helper.alive:
        helper = _HELPERS[key] = _Helper(objectives, settings)
    return helper


@cache
def _python_path() -> str:
    return os.pathsep.join(os.path.abspath(path) for path in sys.path if path)  # noqa: PTH100 - sys.path may hold zips


def _environment(home: str) -> dict[str, str]:
    """The few variables that the helper may see: generated code reads them, so no keys and no tokens."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return {
        "HF_HOME": HF_HOME,
        "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),
        **kept,
        "HOME": home,
        "PYTHONPATH": _python_path(),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_ALLOW_CODE_EVAL": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
