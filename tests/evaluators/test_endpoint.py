"""Models behind an OpenAI-compatible API: a small server in this process answers lm-eval's API models."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from evaluators.endpoint import EndpointEvaluator, EndpointSettings
from evaluators.errors import TaskError
from evaluators.evaluation import Documents, Evaluation, Failure, FailureKind
from evaluators.objective_kinds import AnyObjective
from evaluators.protocol import Evaluator
from evaluators.tasks import TaskSuite

pytest.importorskip("tenacity")

KEY = "sk-very-secret"
ADAPTER: TypeAdapter[AnyObjective] = TypeAdapter(AnyObjective)


def log_probability(token: int) -> float:
    return -(1 + token % 7) / 4


class FakeApi(ThreadingHTTPServer):
    """Answers `cat` to every question whose number is even, and scores tokens by their numbers."""

    daemon_threads = True

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokenizer = tokenizer
        self.seen: list[tuple[str, dict[str, Any], str]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1{path}"

    def answer(self, text: str) -> str:
        number = int(text.rsplit("Question:", 1)[1].split()[2])
        return "cat" if number % 2 == 0 else "nothing at all"

    def reply(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("/chat/completions"):
            text = self.answer(payload["messages"][-1]["content"])
            return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
        if not payload.get("echo"):
            return {"choices": [{"index": 0, "text": self.answer(payload["prompt"])}]}
        values = [log_probability(token) for token in self.tokenizer(payload["prompt"]).input_ids]
        values += [-1.0]  # of the token generated beyond the echo
        tops = [{"it": value} for value in values]
        return {"choices": [{"index": 0, "logprobs": {"token_logprobs": values, "top_logprobs": tops}}]}


class Handler(BaseHTTPRequestHandler):
    server: FakeApi

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        authorization = self.headers.get("Authorization", "")
        self.server.seen.append((self.path, payload, authorization))
        status = 200 if authorization == f"Bearer {KEY}" else 401
        body = self.server.reply(self.path, payload) if status == 200 else {"error": f"bad key {authorization}"}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def api(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = FakeApi(tokenizer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def tokenizer_folder(tokenizer: Any, tmp_path: Any) -> str:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.fixture
def suite(tasks: Any, settings: Any) -> Any:
    tasks.generation(
        "gen", doc_to_target="cat", generation_kwargs={"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    )
    tasks.multiple_choice("mc")

    def make(*values: dict[str, Any], **changes: Any) -> TaskSuite:
        return TaskSuite.load([ADAPTER.validate_python(value) for value in values], settings(**changes))

    return make


DOCUMENTS = (0, 1, 2, 5)  # questions 1000, 1001, 1002, 1005


def evaluated(suite: TaskSuite, endpoint: EndpointSettings) -> Evaluation:
    evaluator = EndpointEvaluator(suite, endpoint)
    assert isinstance(evaluator, Evaluator)
    outcome = evaluator.evaluate(None, Documents(dict.fromkeys(suite.loaded, DOCUMENTS)))
    assert isinstance(outcome, Evaluation), outcome
    return outcome


@pytest.mark.parametrize("path", ["/completions", "/chat/completions"])
def test_generated_answers_are_judged_like_any_other(path: str, suite: Any, api: FakeApi) -> None:
    found = evaluated(suite({"task": "gen", "metric": "exact_match"}), EndpointSettings(api.url(path), "m"))
    assert found.scores["gen/exact_match"].documents.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert {seen for seen, *_ in api.seen} == {f"/v1{path}"}
    assert all(payload["model"] == "m" and payload["temperature"] == 0 for _, payload, _ in api.seen)
    assert {authorization for *_, authorization in api.seen} == {f"Bearer {KEY}"}


def test_likelihoods_and_lengths_with_the_models_tokenizer(
    suite: Any, api: FakeApi, tokenizer: Any, tokenizer_folder: str
) -> None:
    asked = [{"kind": "likelihood", "task": "gen", "per": "token"}, {"kind": "length", "task": "gen"}, {"task": "mc"}]
    found = evaluated(suite(*asked), EndpointSettings(api.url("/completions"), "m", tokenizer_folder))
    values = [log_probability(token) for token in tokenizer(" cat").input_ids]
    np.testing.assert_allclose(found.scores["gen/likelihood per token"].documents, np.mean(values))
    cat, nothing = (len(tokenizer(text).input_ids) for text in ("cat", "nothing at all"))
    assert found.scores["gen/length"].documents.tolist() == [cat, nothing, cat, nothing]
    assert set(found.scores["mc/acc"].documents.tolist()) <= {0.0, 1.0}


def test_a_refusal_of_the_endpoint_is_a_failure_that_shows_no_key(
    suite: Any, api: FakeApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-wrong-one")
    monkeypatch.setattr("evaluators.endpoint._ATTEMPTS", 1)
    endpoint = EndpointSettings(api.url("/completions"), "m")
    outcome = EndpointEvaluator(suite({"task": "gen", "metric": "exact_match"}), endpoint).evaluate(
        None, Documents({"gen": DOCUMENTS})
    )
    assert isinstance(outcome, Failure) and outcome.kind is FailureKind.EXCEPTION
    assert "401" in outcome.message
    written = capfd.readouterr()
    for text in (outcome.message, caplog.text, written.out, written.err):
        assert "sk-the-wrong-one" not in text


@pytest.mark.parametrize(
    ("values", "path", "changes", "expected"),
    [
        ([{"task": "mc"}], "/chat/completions", {}, "mc needs log-likelihoods, which chat endpoints do not give"),
        ([{"task": "mc"}], "/completions", {}, "those the model's tokenizer"),
        ([{"kind": "length", "task": "gen"}], "/completions", {}, "counts tokens, which needs the model's tokenizer"),
        ([{"kind": "cost", "task": "gen", "unit": "seconds"}], "/completions", {}, "does not say what an answer took"),
        ([{"task": "gen", "metric": "exact_match"}], "", {}, "ending in /completions or /chat/completions"),
        (
            [{"task": "gen", "metric": "exact_match"}],
            "/completions",
            {"apply_chat_template": True},
            "a chat template is for endpoints ending in /chat/completions",
        ),
    ],
)
def test_what_an_endpoint_cannot_give_is_refused(
    values: Any, path: str, changes: Any, expected: str, suite: Any
) -> None:
    with pytest.raises(TaskError, match=expected):
        EndpointEvaluator(suite(*values, **changes), EndpointSettings(f"http://127.0.0.1:9/v1{path}", "m"))


def test_the_address_is_shown_without_what_may_be_secret() -> None:
    settings = EndpointSettings("https://user:word@host:8000/v1/completions?key=abc", "m")
    assert settings.shown == "https://host:8000/v1/completions"
