"""Continuation of all prompts of a plan: one batched loop, the head on the last position only.

Rows of different tasks share a batch, each with its own stop strings, length and sampling. Greedy answers are those of
`HFLM.generate_until` with a batch size of one, sampled ones have its distribution; neither depends on what else is in
the batch.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import Cache

from evaluators.errors import MeasurementFailed
from evaluators.evaluation import FailureKind
from evaluators.generation_rules import GenerationRules, rules_of
from evaluators.head import head_on, last_position
from evaluators.memory import Room, in_halves
from evaluators.meter import Meter
from evaluators.prompts import PromptBatch, PromptRow, collate_prompts
from evaluators.sampling import Sampler, warpers_of
from evaluators.scoring import can_branch
from evaluators.shared_cache import Prefixes
from evaluators.stopping import MAY_STOP, STOPS, Stopping

# rows leave the batch when at most this share of it is still going: each time costs a copy of the cache
_COMPACT_BELOW = 0.5


class Generated(NamedTuple):
    """Of each request: its text, its (requests,) new tokens, and its (requests,) share of the wall time in seconds."""

    texts: list[str]
    tokens: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]


def generate(
    model: Any,
    batches: Sequence[PromptBatch],
    *,
    requests: int,
    stopping: Stopping,
    meter: Meter,
    prefixes: Prefixes | None = None,
    room: Room | None = None,
) -> Generated:
    """Return the answers to ``requests`` numbered requests; call under `torch.inference_mode`.

    Args:
        prefixes: what this very model has computed before.
        room: how large a batch may be, as far as earlier calls have learnt.

    Raises:
        MeasurementFailed: a logit is not finite, the deadline has passed, or the model's generation config asks for
            what is not supported.
    """
    rules = rules_of(model)
    texts = [""] * requests
    tokens, seconds = np.zeros(requests, dtype=np.int64), np.zeros(requests)
    room = room or Room()
    prefixes = Prefixes() if prefixes is None else prefixes
    roomy = can_branch(model)

    def run(batch: PromptBatch) -> None:
        start = time.perf_counter()
        longest = len(batch.prefix) + batch.ids.shape[1] + int(batch.longest.max())
        cache = prefixes.roomy_cache(model, batch.prefix, meter, room=longest) if roomy else None
        answers = _Decoding(model, batch, cache, rules=rules, stopping=stopping, meter=meter).run()
        per_token = (time.perf_counter() - start) / sum(map(len, answers))
        for row, answer in zip(batch.rows, answers, strict=True):
            text = stopping.text(answer, row.prompt.until)
            for request in row.requests:
                texts[request], tokens[request], seconds[request] = text, len(answer), len(answer) * per_token

    for batch in batches:
        in_halves(
            batch.rows,
            lambda rows, whole=batch: run(whole if rows is whole.rows else collate_prompts(rows, whole.prefix)),  # type: ignore[misc]
            room=room,
            size=_kept_tokens,
        )
    return Generated(texts, tokens, seconds)


def _kept_tokens(rows: Sequence[PromptRow]) -> int:
    """Tokens whose keys and values are in memory at the end."""
    prompts = [row.prompt for row in rows]
    return len(rows) * (max(len(p.tokens) for p in prompts) + max(p.max_new_tokens for p in prompts))


class _Decoding:
    """One batch on its way. `self._going` maps the rows of the running batch to those of the whole one."""

    def __init__(
        self,
        model: Any,
        batch: PromptBatch,
        cache: Cache | None,
        *,
        rules: GenerationRules,
        stopping: Stopping,
        meter: Meter,
    ) -> None:
        self._model, self._batch, self._rules = model, batch, rules
        self._stopping, self._meter = stopping, meter
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._answers: list[list[int]] = [[] for _ in batch.rows]
        self._over = torch.zeros(len(batch.rows), dtype=torch.bool)
        self._going = torch.arange(len(batch.rows))
        self._table: torch.Tensor | None = None
        self._ids = batch.ids.to(model.device)
        self._mask = None if batch.mask is None else batch.mask.to(model.device)
        self._history: torch.Tensor | None = None
        if rules.processors:
            prefix = torch.tensor(batch.prefix, dtype=torch.int64, device=model.device)
            self._history = torch.cat([prefix.expand(len(batch.rows), -1), self._ids], dim=1)
        self._samplers = [
            Sampler(warpers_of(sampling, model.generation_config, model.device), keys)
            for sampling, keys in batch.sampled.items()
        ]
        self._cache: Any = cache
        self._steps = 0

    def run(self) -> list[list[int]]:
        """Return the new tokens of every row, the one that ended it included."""
        while True:
            self._meter.check_deadline()
            logits = self._forward()
            chosen = self._choose(logits)
            self._append(chosen.cpu(), vocabulary=logits.shape[-1])
            going = ~self._over[self._going]
            if not bool(going.any()):
                return self._answers
            if float(going.float().mean()) <= _COMPACT_BELOW and hasattr(self._cache, "batch_select_indices"):
                chosen = self._compact(going, chosen)
            self._ids = chosen[:, None]
            if self._mask is not None:
                self._mask = torch.cat([self._mask, self._mask.new_ones(len(chosen), 1)], dim=1)
            if self._history is not None:
                self._history = torch.cat([self._history, self._ids], dim=1)

    def _forward(self) -> torch.Tensor:
        """Logits of the next token: (rows, vocabulary) float32."""
        options: dict[str, Any] = {"past_key_values": self._cache} if self._cache is not None else {}
        if self._mask is not None:
            options["attention_mask"] = self._mask
            if self._takes_positions:
                positions = (self._mask.cumsum(1) - 1).clamp_(min=0)
                options["position_ids"] = positions[:, -self._ids.shape[1] :]
        with self._meter.forward(self._ids.numel()), head_on(self._model, last_position) as chosen:
            output = self._model(input_ids=self._ids, use_cache=True, **options)
            logits: torch.Tensor = chosen(output.logits)[:, -1]
        self._cache = output.past_key_values
        return logits.float()

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of every row: (rows,) int64."""
        best, chosen = logits.max(-1)
        # the largest is NaN if any is NaN
        if not bool((torch.isfinite(best).cpu() | self._over[self._going]).all()):
            raise MeasurementFailed(FailureKind.NON_FINITE, "logits are NaN or infinite while generating")
        if self._rules.processors is not None and self._history is not None:
            # the annotations of transformers want torch.LongTensor, which no int64 tensor is for mypy
            logits = self._rules.processors(self._history, logits)  # type: ignore[arg-type]
            chosen = logits.argmax(-1)
        for sampler in self._samplers:
            sampler.choose(chosen, logits, going=self._going, step=self._steps)
        return chosen

    def _append(self, chosen: torch.Tensor, *, vocabulary: int) -> None:
        """Add the ``chosen`` tokens (rows,) and mark the rows that are over."""
        if self._table is None:
            tables = [
                self._stopping.table(until, self._rules.end_tokens, vocabulary=vocabulary)
                for until in self._batch.stop_sets
            ]
            self._table = torch.stack(tables)
        kinds = self._table[self._batch.stop_set[self._going], chosen]
        for row, token, over in zip(
            self._going.tolist(), chosen.tolist(), self._over[self._going].tolist(), strict=True
        ):
            if not over:
                self._answers[row].append(token)
        self._steps += 1
        for place in torch.nonzero(kinds == MAY_STOP).flatten().tolist():
            row = int(self._going[place])
            if not self._over[row] and self._stopping.is_over(self._answers[row], self._batch.rows[row].prompt.until):
                kinds[place] = STOPS
        self._over[self._going] |= (kinds == STOPS) | (self._batch.longest[self._going] <= self._steps)

    def _compact(self, going: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Take the rows that are over out of the batch."""
        kept = torch.nonzero(going).flatten()
        self._going = self._going[kept]
        self._cache.batch_select_indices(kept)  # on the CPU: layers may lie on several devices
        kept = kept.to(chosen.device)
        if self._mask is not None:
            self._mask = self._mask[kept]
        if self._history is not None:
            self._history = self._history[kept]
        return chosen[kept]
