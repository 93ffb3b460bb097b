"""One loaded task: a value that everything which measures on it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evaluators import sampling
from evaluators.fingerprint import document_digest
from evaluators.metrics import Measure
from evaluators.objective_kinds import AnyObjective


@dataclass(frozen=True)
class LoadedTask:
    """One lm-eval task with its evaluation documents (test documents, else validation documents).

    Attributes:
        task: the lm-eval object; its few-shot number is set, its requests are not built.
        trusted: whether its templates may render outside the sandbox.
        measures: the metrics that are computed, also those that only another objective needs.
        gauged: the objectives of other kinds.
        runs_code: whether judging an answer may execute it.
    """

    name: str
    task: Any
    trusted: bool
    documents: tuple[Mapping[str, Any], ...]
    measures: tuple[Measure, ...]
    gauged: tuple[AnyObjective, ...] = ()
    runs_code: bool = False

    @property
    def kind(self) -> str:
        """lm-eval's output type."""
        return str(self.task.OUTPUT_TYPE)

    @property
    def samples(self) -> bool:
        """Whether its answers are sampled."""
        return self.kind == "generate_until" and sampling.is_sampled(self.task.config.generation_kwargs or {})

    @cached_property
    def document_digests(self) -> tuple[str, ...]:
        """SHA-256 of each document's content, in the task's order."""
        return tuple(document_digest(document) for document in self.documents)
