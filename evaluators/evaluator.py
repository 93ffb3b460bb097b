"""Measures live models on lm-eval tasks: what does not depend on the model is done once for the whole search."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluators.answers import Answers, Asked
from evaluators.budget import tokens_per_batch
from evaluators.encoding import Encoder
from evaluators.errors import MeasurementFailed, TaskError, one_line
from evaluators.evaluation import Documents, Evaluation, Failure, FailureKind, Outcome
from evaluators.generation import generate
from evaluators.memory import Room, is_out_of_memory
from evaluators.meter import Meter
from evaluators.objective import EvaluationSettings
from evaluators.panel import Panel
from evaluators.plan import Limits, Plan, TaskPart, make_plan
from evaluators.references import task_of
from evaluators.requests import RequestBook
from evaluators.scoring import can_branch, score
from evaluators.shared_cache import Prefixes
from evaluators.stopping import Stopping
from evaluators.tasks import TaskSuite
from evaluators.truncation import count_truncated

_PLANS_KEPT = 16
_LOGITS_PER_BATCH = 1 << 27  # 512 MiB of float32


@dataclass(frozen=True)
class _Prepared:
    digest: str
    plan: Plan
    panel: Panel
    truncated: dict[str, int]


class LmEvalEvaluator:
    """An `Evaluator` for causal language models of transformers that share one tokenizer.

    Scores are those of `lm_eval.simple_evaluate`. Equal models on equal documents give equal bits, unless memory ran
    out: batches are then halved, and log-likelihoods differ by rounding.
    """

    def __init__(
        self,
        suite: TaskSuite,
        tokenizer: Any,
        *,
        settings: EvaluationSettings,
        max_length: int,
        cache: Path | None = None,
    ) -> None:
        """Prepare to measure; nothing is built before the first `evaluate` or `prepare`.

        Args:
            max_length: context of the models in tokens; ``settings.max_length`` takes precedence.
            cache: folder where tokenised requests are kept for other workers and later runs; None keeps none.

        Raises:
            TaskError: the tokenizer has no end-of-sequence token.
        """
        # one thread per worker; and no warning about tokenizers in a process that forks
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._suite, self._settings = suite, settings
        self._max_length = settings.max_length or max_length
        encoder = Encoder(tokenizer, max_length=self._max_length)
        self._book = RequestBook(suite, encoder, cache=cache)
        self._stopping = Stopping(encoder.tokenizer)
        self._vocabulary = len(tokenizer)
        self._kept: Prefixes | None = None
        self._scoring_room, self._generation_room = Room(), Room()
        self._prepared: OrderedDict[tuple[str, bool, int], _Prepared] = OrderedDict()

    def prepare(self, documents: Documents, *, model: Any) -> Plan:
        """Build and tokenise the requests of ``documents`` now, for models like ``model``, and return their plan.

        Raises:
            TaskError: a task or document is unknown, a template fails, or a document does not fit the model.
        """
        return self._for(documents, model).plan

    def evaluate(self, model: Any, documents: Documents) -> Outcome:
        """Return the scores of ``model`` on ``documents``, or why there are none.

        Raises:
            TaskError: as `prepare`; never for what the model does.
        """
        meter = Meter(device=model.device, timeout_seconds=self._settings.timeout_seconds)
        prepared = self._for(documents, model)
        try:
            with torch.inference_mode():
                return self._measure(model, documents, prepared, meter)
        except MeasurementFailed as failed:
            return Failure(failed.kind, str(failed), meter.cost(documents=documents.count))
        except Exception as error:
            kind = FailureKind.OUT_OF_MEMORY if is_out_of_memory(error) else FailureKind.EXCEPTION
            text = f"{type(error).__name__}: {one_line(error)}"
            return Failure(kind, text, meter.cost(documents=documents.count))

    @contextmanager
    def same_model(self) -> Iterator[None]:
        """Inside, every `evaluate` gets one model with the same weights: prefixes that it has computed are kept.

        For evaluations in blocks of documents; the scores are the same within rounding.
        """
        self._kept = Prefixes()
        try:
            yield
        finally:
            self._kept = None

    def _measure(self, model: Any, documents: Documents, prepared: _Prepared, meter: Meter) -> Evaluation:
        plan = prepared.plan
        model.eval()
        prefixes = self._kept or Prefixes()
        likelihoods = score(
            model, plan.scoring, requests=plan.scored, meter=meter, prefixes=prefixes, room=self._scoring_room
        )
        answers = Answers(likelihoods)
        if plan.generated:
            generated = generate(
                model,
                plan.generation,
                requests=plan.generated,
                stopping=self._stopping,
                meter=meter,
                prefixes=prefixes,
                room=self._generation_room,
            )
            answers = Answers(likelihoods, *generated)
        scores, tie_breaks, over_limits = prepared.panel.judge(answers)
        cost = meter.cost(documents=documents.count)
        return Evaluation(prepared.digest, scores, tie_breaks, cost, prepared.truncated, over_limits)

    def _for(self, documents: Documents, model: Any) -> _Prepared:
        digest, branching, tokens = documents.digest, can_branch(model), tokens_per_batch(self._settings, model)
        key = (digest, branching, tokens)
        if key not in self._prepared:
            self._check(documents)
            limits = Limits(
                tokens=tokens,
                wants=max(1, _LOGITS_PER_BATCH // self._vocabulary),
                max_length=self._max_length,
            )
            asked = self._suite.split_into_parts(documents)
            plan = make_plan(self._book, asked, limits, branching=branching)
            panel = Panel(self._suite, plan.parts, self._asked)
            self._prepared[key] = _Prepared(digest, plan, panel, self._truncated(asked))
            if len(self._prepared) > _PLANS_KEPT:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _asked(self, part: TaskPart) -> Asked:
        return Asked.of(part, self._book)

    def _truncated(self, asked: Documents) -> dict[str, int]:
        counts: dict[str, int] = {}
        for part, numbers in asked.ids.items():
            count = count_truncated(self._book.requests(part, numbers), max_length=self._max_length)
            counts[task_of(part)] = max(count, counts.get(task_of(part), 0))
        return {task: count for task, count in counts.items() if count}

    def _check(self, documents: Documents) -> None:
        for task, numbers in documents.ids.items():
            if task not in self._suite.loaded:
                raise TaskError(f"documents of task {task!r} asked for; known: {', '.join(self._suite.tasks)}")
            count = len(self._suite.loaded[task].documents)
            if not numbers:
                raise TaskError(f"no documents of task {task} asked for; leave the task out or give some")
            if strange := [number for number in numbers if not 0 <= number < count]:
                raise TaskError(f"task {task} has documents 0 to {count - 1}, asked for {strange[0]}")
