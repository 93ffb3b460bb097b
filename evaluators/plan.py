"""What is run for a set of documents: a pure function of the set, made once and used for every model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from evaluators.encoding import Prompt, Window
from evaluators.evaluation import Documents
from evaluators.packing import KEPT_PER_COMPUTED, Batch, Row, pack, sequences, tree
from evaluators.prefixes import Group, share, worthwhile
from evaluators.prompts import PromptBatch, PromptRow, collate_prompts
from evaluators.requests import DocumentRequests, RequestBook

# a mask costs a little; below this share of the tokens sharing pays
_BRANCHING_PAYS_BELOW = 0.8


@dataclass(frozen=True)
class Limits:
    """What one forward pass may hold: padded tokens, scored positions; and the model's context in tokens."""

    tokens: int
    wants: int
    max_length: int


@dataclass(frozen=True)
class TaskPart:
    """The requests of one task in a plan.

    Attributes:
        documents: the document ids in order.
        counts: (documents,) number of requests of each.
        first: number of the task's first request among all requests of its kind (scored or generated).
    """

    task: str
    documents: tuple[int, ...]
    counts: npt.NDArray[np.int64]
    first: int
    generates: bool

    @property
    def requests(self) -> slice:
        """Where the task's requests are among all of their kind."""
        return slice(self.first, self.first + int(self.counts.sum()))


@dataclass(frozen=True)
class Plan:
    """Batches to score, batches to generate from, and whose they are."""

    parts: tuple[TaskPart, ...]
    scored: int
    generated: int
    scoring: tuple[Batch, ...]
    generation: tuple[PromptBatch, ...]


def make_plan(book: RequestBook, documents: Documents, limits: Limits, *, branching: bool) -> Plan:
    """Plan the requests of ``documents``; ``branching`` lets the choices of a question share their context.

    Raises:
        TaskError: a request cannot be built.
    """
    parts: list[TaskPart] = []
    rows: list[Row] = []
    prompts: dict[Prompt, list[int]] = {}
    scored = generated = 0
    for task, numbers in documents.ids.items():
        requests = book.requests(task, numbers)
        counts = np.array([len(request.encoded) for request in requests], dtype=np.int64)
        generates = any(isinstance(request.encoded[0], Prompt) for request in requests)
        parts.append(TaskPart(task, numbers, counts, generated if generates else scored, generates))
        if generates:
            generated = _add_prompts(prompts, requests, generated)
        else:
            for request in requests:
                windows = list(_windows(request, scored))
                rows += _rows(windows, limits.max_length, branching=branching)
                scored += len(request.encoded)
    merged = _merged(rows)
    batches = [
        batch
        for group in (share(merged) if branching else [Group((), tuple(merged))])
        for batch in pack(group.rows, prefix=group.prefix, tokens_per_batch=limits.tokens, wants_per_batch=limits.wants)
    ]
    generation = tuple(
        batch
        for prefix, group in (_shared(prompts) if branching else [((), list(prompts))])
        for batch in _prompt_batches(group, prompts, limits.tokens, prefix)
    )
    return Plan(tuple(parts), scored, generated, tuple(batches), generation)


def _add_prompts(prompts: dict[Prompt, list[int]], requests: Iterable[DocumentRequests], generated: int) -> int:
    for request in requests:
        for prompt in request.encoded:
            assert isinstance(prompt, Prompt)
            prompts.setdefault(prompt, []).append(generated)
            generated += 1
    return generated


def _windows(request: DocumentRequests, first: int) -> Iterator[tuple[int, Window]]:
    for number, encoded in enumerate(request.encoded):
        assert not isinstance(encoded, Prompt)
        for window in encoded:
            yield first + number, window


def _rows(windows: Sequence[tuple[int, Window]], max_length: int, *, branching: bool) -> list[Row]:
    plain = sequences(windows, max_length=max_length)
    if not branching or len(plain) < 2:
        return plain
    shared = tree(windows, max_length=max_length)
    pays = len(shared.tokens) <= _BRANCHING_PAYS_BELOW * sum(len(row.tokens) for row in plain)
    return [shared] if pays else plain


def _merged(rows: Iterable[Row]) -> list[Row]:
    """Rows of equal tokens (the same question in two tasks) become one."""
    same: dict[tuple[tuple[int, ...], tuple[int, ...]], Row] = {}
    for row in rows:
        key = (row.tokens, row.parents)
        known = same.get(key)
        same[key] = replace(known, wants=known.wants + row.wants) if known else row
    return list(same.values())


def _shared(prompts: Iterable[Prompt]) -> Iterator[tuple[tuple[int, ...], list[Prompt]]]:
    """Prompts by the prefix that they share; each keeps at least its last token."""
    ordered = sorted(prompts, key=lambda prompt: prompt.tokens)
    spans = worthwhile([prompt.tokens[:-1] for prompt in ordered], [len(prompt.tokens) for prompt in ordered])
    inside = {place for span in spans for place in range(span.start, span.stop)}
    yield (), [prompt for place, prompt in enumerate(ordered) if place not in inside]
    for span in spans:
        yield ordered[span.start].tokens[: span.length], ordered[span.start : span.stop]


def _prompt_batches(
    group: Iterable[Prompt], requests: Mapping[Prompt, Sequence[int]], tokens: int, prefix: tuple[int, ...]
) -> Iterator[PromptBatch]:
    """Longest first; equal lengths end up together, which needs no padding and no mask."""
    current: list[PromptRow] = []
    longest_answer = 0
    for prompt in sorted(group, key=lambda p: (-len(p.tokens), p.max_new_tokens, p.tokens, p.until)):
        length = len(current[0].prompt.tokens if current else prompt.tokens)
        longest_answer = max(longest_answer, prompt.max_new_tokens)
        count = len(current) + 1
        kept = count * (length + longest_answer)
        if current and (count * (length - len(prefix)) > tokens or kept > KEPT_PER_COMPUTED * tokens):
            yield collate_prompts(current, prefix)
            current, longest_answer = [], prompt.max_new_tokens
        current.append(PromptRow(prompt, tuple(requests[prompt])))
    if current:
        yield collate_prompts(current, prefix)
