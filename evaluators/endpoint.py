"""Models behind an OpenAI-compatible API, asked through lm-eval's own API models and judged like any other.

The key is read from OPENAI_API_KEY by lm-eval when a request is sent. It is in no setting, record or message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from lm_eval.api.instance import Instance

from evaluators.answers import Answers, Asked
from evaluators.encoding import Prompt, Window
from evaluators.errors import MeasurementFailed, TaskError, one_line
from evaluators.evaluation import Cost, Documents, Evaluation, Failure, FailureKind, Outcome
from evaluators.library_state import calling_lm_eval
from evaluators.objective_kinds import CostPerAnswer, Length, Likelihood, Perplexity
from evaluators.panel import Panel
from evaluators.plan import TaskPart
from evaluators.requests import RequestBook
from evaluators.scoring import LogLikelihoods
from evaluators.tasks import TaskSuite

_CHAT, _COMPLETIONS = "/chat/completions", "/completions"
_ATTEMPTS = 3
_SECRETS = re.compile(r"(Bearer\s+|sk-)[^\s'\",)]+", re.IGNORECASE)


@dataclass(frozen=True)
class EndpointSettings:
    """Where a model is called.

    Attributes:
        url: the whole address, which ends in ``/completions`` or ``/chat/completions``.
        tokenizer: folder or Hub id of the model's tokenizer; log-likelihoods and token counts need it.
        concurrent: requests in flight.
        max_length: the model's context in tokens.
    """

    url: str
    model: str
    tokenizer: str | None = None
    concurrent: int = 8
    max_length: int = 4096

    @property
    def is_chat(self) -> bool:
        """Whether it takes messages rather than text."""
        return self.url.rstrip("/").endswith(_CHAT)

    @property
    def shown(self) -> str:
        """The address without what could be a secret in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


class EndpointEvaluator:
    """An `Evaluator` of one model that can only be called; its argument ``model`` is not looked at."""

    def __init__(self, suite: TaskSuite, endpoint: EndpointSettings) -> None:
        """Prepare to measure.

        Raises:
            TaskError: the address is none of the two kinds; or an objective needs what the endpoint cannot give.
        """
        _check_address(endpoint)
        _check_objectives(suite, endpoint)
        self._endpoint = endpoint
        if endpoint.is_chat and not suite.settings.apply_chat_template:
            settings = suite.settings.model_copy(update={"apply_chat_template": True})
            suite = replace(suite, settings=settings)
        self._suite = suite
        with calling_lm_eval(trusted=False):
            self._api = _api_of(endpoint)
        self._book = RequestBook(suite, _Counter(self._api))

    def evaluate(self, model: Any, documents: Documents) -> Outcome:
        """Return the scores of the endpoint's model on ``documents``, or why there are none.

        Raises:
            TaskError: the prompts of a task cannot be built.
        """
        start = time.perf_counter()
        parts = self._parts(self._suite.split_into_parts(documents))
        panel = Panel(self._suite, parts, self._asked)
        try:
            scores, tie_breaks, over_limits = panel.judge(self._answers(parts))
        except MeasurementFailed as failed:
            return Failure(failed.kind, str(failed))
        except Exception as error:  # whatever the network, aiohttp, requests and the endpoint's answers make of it
            text = _SECRETS.sub(r"\1***", one_line(error)).replace(self._endpoint.url, "")
            return Failure(FailureKind.EXCEPTION, f"endpoint {self._endpoint.shown}: {type(error).__name__}: {text}")
        cost = Cost(seconds=time.perf_counter() - start, documents=documents.count)
        return Evaluation(documents.digest, scores, tie_breaks, cost, over_limits=over_limits)

    def _parts(self, documents: Documents) -> list[TaskPart]:
        parts: list[TaskPart] = []
        firsts = {True: 0, False: 0}  # by whether a part generates
        for name, numbers in documents.ids.items():
            requests = self._book.requests(name, numbers)
            counts = np.array([len(request.instances) for request in requests], dtype=np.int64)
            generates = requests[0].instances[0].request_type == "generate_until"
            parts.append(TaskPart(name, numbers, counts, firsts[generates], generates))
            firsts[generates] += int(counts.sum())
        return parts

    def _asked(self, part: TaskPart) -> Asked:
        asked = Asked.of(part, self._book)
        return asked if self._endpoint.tokenizer else Asked(asked.instances, asked.counts, None)

    def _answers(self, parts: Sequence[TaskPart]) -> Answers:
        scored = [instance for part in parts if not part.generates for instance in self._asked(part).instances]
        prompts = [instance for part in parts if part.generates for instance in self._asked(part).instances]
        with calling_lm_eval(trusted=False):
            pairs = self._log_likelihoods(scored)
            texts = [str(text) for text in self._api.generate_until(prompts)] if prompts else []
        values = np.array([value for value, _ in pairs], dtype=np.float64)
        if not np.isfinite(values).all():
            raise MeasurementFailed(FailureKind.NON_FINITE, "log-likelihoods are NaN or infinite")
        greedy = np.array([bool(is_greedy) for _, is_greedy in pairs], dtype=bool)
        tokens = None
        if self._endpoint.tokenizer:
            tokens = np.array([_count(self._api, text) for text in texts], dtype=np.int64)
        return Answers(LogLikelihoods(values, greedy), texts, tokens)

    def _log_likelihoods(self, instances: Sequence[Instance]) -> list[tuple[float, bool]]:
        """In the order of ``instances``; lm-eval takes texts and answers in separate calls."""
        found: dict[int, tuple[float, bool]] = {}
        for kind in ("loglikelihood", "loglikelihood_rolling"):
            mine = [i for i, instance in enumerate(instances) if instance.request_type == kind]
            results = getattr(self._api, kind)([instances[i] for i in mine]) if mine else []
            for i, result in zip(mine, results, strict=True):
                found[i] = (float(result), False) if kind.endswith("rolling") else (float(result[0]), bool(result[1]))
        return [found[i] for i in range(len(instances))]


class _Counter:
    """Takes the place of the encoder: an endpoint gets texts; only their sizes in tokens are wanted."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.apply_chat_template = api.apply_chat_template

    def prompt(self, instance: Instance) -> Prompt:
        """Return the prompt's tokens; a chat's are those of its JSON."""
        text = instance.args[0]
        return Prompt((0,) * _count(self._api, str(getattr(text, "prompt", text))), (), 0)

    def windows(self, instance: Instance) -> tuple[Window, ...]:
        """Return as many tokens as the answer, or the text, has."""
        return (Window((), (0,) * _count(self._api, str(instance.args[-1]))),)


def _count(api: Any, text: str) -> int:
    return len(api.tok_encode(text)) if api.tokenizer is not None else 0


def _api_of(endpoint: EndpointSettings) -> Any:
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    kind = LocalChatCompletion if endpoint.is_chat else LocalCompletionsAPI
    backend = "huggingface" if endpoint.tokenizer else None
    try:
        return kind(
            base_url=endpoint.url,
            model=endpoint.model,
            tokenizer=endpoint.tokenizer,
            tokenizer_backend=backend,
            tokenized_requests=False,
            num_concurrent=endpoint.concurrent,
            max_retries=_ATTEMPTS,
            max_length=endpoint.max_length,
        )
    except ModuleNotFoundError:
        raise TaskError("endpoints need more of lm-eval: pip install 'evomerge[endpoint]'") from None
    except (OSError, ValueError) as error:
        text = one_line(error)
        raise TaskError(f"the tokenizer {endpoint.tokenizer!r} of the endpoint cannot be loaded: {text}") from None


def _check_address(endpoint: EndpointSettings) -> None:
    address = endpoint.url.rstrip("/")
    if urlsplit(address).scheme not in ("http", "https") or not address.endswith((_CHAT, _COMPLETIONS)):
        raise TaskError(
            f"endpoint {endpoint.shown!r}: expected the whole address, "
            f"http(s)://... ending in {_COMPLETIONS} or {_CHAT}"
        )


def _check_objectives(suite: TaskSuite, endpoint: EndpointSettings) -> None:
    if suite.settings.apply_chat_template and not endpoint.is_chat:
        raise TaskError(f"a chat template is for endpoints ending in {_CHAT}; this one takes plain text")
    for name, part in suite.parts.items():
        if part.samples and int(part.task.config.repeats) > 1:
            raise TaskError(f"task {name} samples several answers a document, which endpoints are not asked for")
        if part.kind == "generate_until":
            continue
        if endpoint.is_chat:
            raise TaskError(f"{name} needs log-likelihoods, which chat endpoints do not give; use one for completions")
        if endpoint.tokenizer is None:
            raise TaskError(f"{name} needs log-likelihoods, and those the model's tokenizer (--tokenizer)")
    for objective in suite.objectives:
        if isinstance(objective, CostPerAnswer) and objective.unit == "seconds":
            raise TaskError(f"objective {objective.name}: an endpoint does not say what an answer took; use tokens")
        counts = isinstance(objective, Length | CostPerAnswer)
        counts |= isinstance(objective, Likelihood | Perplexity) and objective.per == "token"
        if counts and endpoint.tokenizer is None:
            raise TaskError(
                f"objective {objective.name} counts tokens, which needs the model's tokenizer (--tokenizer)"
            )
