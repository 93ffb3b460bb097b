"""Tasks that execute what models write: refused unless allowed, then judged in a helper under limits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from evaluators.answers import Answers, Asked
from evaluators.encoding import Encoder
from evaluators.errors import MeasurementFailed, OverLimits, TaskError
from evaluators.evaluation import Documents, FailureKind
from evaluators.judging import Judge
from evaluators.objective import EvaluationSettings, Objective
from evaluators.panel import Panel
from evaluators.plan import Limits, TaskPart, make_plan
from evaluators.requests import RequestBook
from evaluators.scoring import LogLikelihoods
from evaluators.tasks import TaskSuite, default_objectives

JUDGE = """
def run(doc, results):
    print("noise on standard output")
    space = {}
    try:
        exec(results[0], space)
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        return {"passed": 0.0, "wrong": 1.0}
    passed = float(space.get("answer") == 42) / (not space.get("raise_in_metric"))
    return {"passed": passed, "wrong": 1.0 - passed}
"""
TASK = """
task: code
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/code.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{question}}}}"
unsafe_code: {unsafe}
process_results: !function judge.run
generation_kwargs: {{until: ["END"], max_gen_toks: 8, do_sample: false}}
metric_list:
  - {{metric: passed, aggregation: mean, higher_is_better: true}}
  - {{metric: wrong, aggregation: mean, higher_is_better: false}}
"""
OBJECTIVE = Objective(task="code", metric="passed")


def write(folder: Any, *, unsafe: str = "true") -> None:
    (folder / "judge.py").write_text(JUDGE)
    (folder / "code.yaml").write_text(TASK.format(folder=folder, unsafe=unsafe))
    (folder / "code.jsonl").write_text("".join(f'{{"question": "number {i}"}}\n' for i in range(4)))


def settings_for(folder: Any, **changes: Any) -> EvaluationSettings:
    paths = {"include_path": (str(folder),), "trusted_paths": (str(folder),)}
    return EvaluationSettings(**{**paths, "allow_code_execution": True, **changes})


def test_such_tasks_are_refused_unless_allowed(tmp_path: Any) -> None:
    write(tmp_path)
    with pytest.raises(TaskError, match=r"executes code .* set evaluation.allow_code_execution: true"):
        TaskSuite.load([OBJECTIVE], settings_for(tmp_path, allow_code_execution=False))
    assert TaskSuite.load([OBJECTIVE], settings_for(tmp_path)).loaded["code"].runs_code


def test_a_metric_that_executes_code_makes_a_task_one_of_them(tmp_path: Any) -> None:
    write(tmp_path, unsafe="false")
    text = (tmp_path / "code.yaml").read_text().replace("metric: passed", "metric: code_eval")
    (tmp_path / "code.yaml").write_text(text)
    with pytest.raises(TaskError, match="executes code that models write"):
        TaskSuite.load([OBJECTIVE], settings_for(tmp_path, allow_code_execution=False))


def test_python_of_untrusted_folders_stays_refused(tmp_path: Any) -> None:
    write(tmp_path)
    with pytest.raises(TaskError, match="trusted_paths"):
        TaskSuite.load([OBJECTIVE], settings_for(tmp_path, trusted_paths=()))


def test_pass_at_k_is_called_as_lm_eval_reports_it(tmp_path: Any) -> None:
    """As in humaneval: the metric is a function `pass_at_k` whose result is a mapping."""
    write(tmp_path)
    (tmp_path / "judge.py").write_text("def pass_at_k(references, predictions, k): return {'pass@1': 0.25}")
    text = (tmp_path / "code.yaml").read_text().replace("process_results: !function judge.run\n", "")
    metric, wrong = "metric: !function judge.pass_at_k, k: [1]", "  - {metric: wrong,"
    text = "\n".join(line for line in text.splitlines() if not line.startswith(wrong))
    (tmp_path / "code.yaml").write_text(text.replace("metric: passed", metric))
    chosen = settings_for(tmp_path)
    (objective,) = default_objectives("code", chosen)
    assert objective.name == "code/pass@1"
    loaded = TaskSuite.load([objective], chosen).loaded["code"]
    part = TaskPart("code", (0, 1), np.array([1, 1]), 0, True)
    nothing = LogLikelihoods(np.array([]), np.array([], dtype=bool))
    score = Judge(loaded, part).scores(likelihoods=nothing, texts=("a", "b"))["code/pass@1"]
    assert (score.value, score.documents.tolist()) == (0.25, [0.25, 0.25])


@pytest.fixture(scope="module")
def code_folder(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("code")
    write(folder)
    return folder


@pytest.fixture
def verdict(code_folder: Any, tokenizer: Any) -> Iterator[Any]:
    """Judges texts as answers to the first documents: their scores, and how many ran out of limits.

    All tests share one helper.
    """
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    limits = settings_for(code_folder, code_seconds_per_document=2.0, code_memory_mib=256)

    def judge(*texts: str, objective: Objective = OBJECTIVE) -> tuple[list[float], int]:
        suite = TaskSuite.load([objective], limits)
        book = RequestBook(suite, Encoder(tokenizer, max_length=200))
        asked = suite.split_into_parts(Documents({"code": tuple(range(len(texts)))}))
        plan = make_plan(book, asked, Limits(512, 512, 200), branching=False)
        nothing = LogLikelihoods(np.array([]), np.array([], dtype=bool))
        found = Panel(suite, plan.parts, lambda part: Asked.of(part, book)).judge(Answers(nothing, texts))
        documents: list[float] = found.scores[objective.name].documents.tolist()
        return documents, found.over_limits.get("code", 0)

    yield judge
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert len(left) <= 2, "only the helpers themselves outlive a judgement"


def network_can_be_taken_away() -> bool:
    code = "import ctypes; libc = ctypes.CDLL(None); raise SystemExit(libc.unshare(1 << 30) and libc.unshare(5 << 28))"
    return subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_code_runs_and_is_scored_document_by_document(verdict: Any) -> None:
    answers = "answer = 6 * 7", "answer = 41", "answer = ", "import math; answer = math.factorial(4) + 18"
    assert verdict(*answers) == ([1.0, 0.0, 0.0, 1.0], 0)


@pytest.mark.slow
def test_code_that_runs_out_of_its_limits_costs_its_document_and_no_other(verdict: Any) -> None:
    loops, sleeps = "while True: pass", "import time; time.sleep(1000)"
    allocates = "blocks = []\nwhile True: blocks.append(bytearray(1 << 24))"
    assert verdict(loops, "answer = 42", sleeps, allocates) == ([0.0, 1.0, 0.0, 0.0], 3)


@pytest.mark.slow
def test_code_that_forks_leaves_nothing_behind(verdict: Any) -> None:
    escapes = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\nanswer = 42"
    assert verdict(escapes) == ([1.0], 0)
    bomb = "import os, time\nwhile True:\n    os.fork()\n    time.sleep(0.02)"
    assert verdict(bomb, "answer = 42") == ([0.0, 1.0], 1)


@pytest.mark.slow
def test_code_sees_no_secrets_and_ends_only_itself(verdict: Any, monkeypatch: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert verdict("import os; answer = 42 if 'OPENAI_API_KEY' not in os.environ else 0") == ([1.0], 0)
    assert verdict("import os; os._exit(0)", "import os; os.kill(os.getpid(), 9)") == ([0.0, 0.0], 2)
    connects = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))\nanswer = 42"
    assert verdict(connects) == ([0.0 if network_can_be_taken_away() else 1.0], 0)
    assert verdict("open('mine', 'w').write('x'); answer = 42") == ([1.0], 0)
    assert not os.path.exists("mine")  # noqa: PTH110


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("import time; time.sleep(1000)", FailureKind.TIMED_OUT, "document 0: judging took more than 2 s"),
        ("blocks = [bytearray(1 << 30)]", FailureKind.OUT_OF_MEMORY, "more than 256 MiB of memory"),
        ("import os; os._exit(0)", FailureKind.METRIC_ERROR, "gave no scores"),
    ],
)
def test_a_minimised_metric_has_no_score_for_exceeded_limits(
    verdict: Any, code: str, kind: FailureKind, text: str
) -> None:
    with pytest.raises(MeasurementFailed, match=text) as raised:
        verdict(code, objective=Objective(task="code", metric="wrong", direction="minimize"))
    assert raised.value.kind is kind


@pytest.mark.slow
def test_a_metric_that_raises_fails_the_candidate(verdict: Any) -> None:
    with pytest.raises(MeasurementFailed, match="document 0: ZeroDivisionError") as raised:
        verdict("raise_in_metric = True")
    assert raised.value.kind is FailureKind.METRIC_ERROR
    assert not isinstance(raised.value, OverLimits)
