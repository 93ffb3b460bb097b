"""Token rows to be scored, and their packing into batches.

A row is a tree of tokens: every token attends to its ancestors only, at the position of its depth. Without branching
a tree is a plain sequence. With branching the answers of one question share the tokens they begin with: context and
all choices cost one row instead of one per choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import NamedTuple

import torch

from evaluators.encoding import Window

# padding tokens a batch may hold: computing more of them costs more than another forward pass
_PADDING = 256
# keys and values that a batch may hold: this many times the tokens that it may compute
KEPT_PER_COMPUTED = 4


class Want(NamedTuple):
    """The log-likelihood of `token` after the node `node` of a row counts for request `request`."""

    node: int
    token: int
    request: int


@dataclass(frozen=True)
class Row:
    """A tree of tokens in depth-first order, so that what follows a token stands together; the root's parent is -1.

    After a prefix there may be several roots.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    wants: tuple[Want, ...]

    @property
    def branches(self) -> bool:
        """Whether any two tokens follow the same one."""
        return any(parent != node - 1 for node, parent in enumerate(self.parents))

    @property
    def depths(self) -> list[int]:
        """Number of ancestors of each node: its position for the model."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths

    @property
    def last(self) -> list[int]:
        """The last node that follows each node, however far down: these and no others see it."""
        last = list(range(len(self.parents)))
        for node in range(len(last) - 1, -1, -1):
            parent = self.parents[node]
            if parent >= 0:
                last[parent] = max(last[parent], last[node])
        return last


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass, padded on the right to the longest.

    Attributes:
        prefix: tokens that all rows follow and do not hold themselves.
        ids: (rows, length) int64.
        places: (wants,) int64 positions in the flattened (rows * length) hidden states.
        targets, requests: (wants,) int64.
        positions, last: (rows or 1, length) int64 of each token, when a row branches or follows a prefix: its
            position for the model, and the place of the last token in its row that sees it.
    """

    rows: tuple[Row, ...]
    prefix: tuple[int, ...]
    ids: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    requests: torch.Tensor
    positions: torch.Tensor | None = None
    last: torch.Tensor | None = None

    def visible(self, device: torch.device) -> torch.Tensor | None:
        """What each token sees: (rows or 1, 1, length, prefix + length) bool on ``device``; None if all before it.

        Made for each use: kept for a whole plan it would be by far the largest part.
        """
        if self.last is None:
            return None
        places = torch.arange(self.ids.shape[1], device=device)
        seen = (places <= places[:, None]) & (places[:, None] <= self.last.to(device)[:, None, :])
        before = seen.new_ones(1, 1, 1).expand(len(seen), seen.shape[1], len(self.prefix))
        return torch.cat([before, seen], dim=2)[:, None]

    @property
    def tokens(self) -> int:
        """Tokens computed, padding not counted."""
        return sum(len(row.tokens) for row in self.rows)


def tree(windows: Sequence[tuple[int, Window]], *, max_length: int) -> Row:
    """Return one row for all ``windows`` (request, window) that begin with the same token."""
    # a context that is too long loses its oldest tokens; the last token of all is never an input
    whole = [
        ((window.context + window.continuation)[-(max_length + 1) :], number, window) for number, window in windows
    ]
    whole.sort(key=lambda entry: entry[:2])  # depth first
    fulls = [full for full, _, _ in whole]
    tokens: list[int] = list(commonprefix([full[:-1] for full in fulls]))
    common = len(tokens)
    parents = list(range(-1, common - 1))
    wants: list[Want] = []
    children: dict[tuple[int, int], int] = {}
    for full, request, window in whole:
        first_scored = len(full) - len(window.continuation)
        wants += [Want(depth - 1, full[depth], request) for depth in range(first_scored, common)]
        parent = common - 1
        for depth, token in enumerate(full[common:], common):
            if depth >= first_scored:
                wants.append(Want(parent, token, request))
            if depth == len(full) - 1:
                break
            key = (parent, token)
            if key not in children:
                children[key] = len(tokens)
                tokens.append(token)
                parents.append(parent)
            parent = children[key]
    return Row(tuple(tokens), tuple(parents), tuple(wants))


def sequences(windows: Iterable[tuple[int, Window]], *, max_length: int) -> list[Row]:
    """Return one unbranched row for each distinct token sequence in ``windows``."""
    same: dict[tuple[int, ...], list[tuple[int, Window]]] = {}
    for request, window in windows:
        full = (window.context + window.continuation)[-(max_length + 1) :]
        same.setdefault(full[:-1], []).append((request, window))
    return [tree(group, max_length=max_length) for group in same.values()]


def pack(
    rows: Sequence[Row], *, tokens_per_batch: int, wants_per_batch: int, prefix: tuple[int, ...] = ()
) -> list[Batch]:
    """Pack ``rows``, longest first, within a number of padded tokens and of scored positions per batch.

    The keys and values of ``prefix`` count too: every row of a batch reads a copy of them.
    """
    batches: list[Batch] = []
    current: list[Row] = []
    tokens = wants = 0
    for row in sorted(rows, key=lambda row: (row.branches, -len(row.tokens), row.tokens)):
        tokens, wants = tokens + len(row.tokens), wants + len(row.wants)
        if current:
            count, length = len(current) + 1, len(current[0].tokens)
            padded = count * length
            kept = count * (len(prefix) + length)
            over = padded > tokens_per_batch or kept > KEPT_PER_COMPUTED * tokens_per_batch
            if over or padded - tokens > _PADDING or wants > wants_per_batch or row.branches != current[0].branches:
                batches.append(collate(current, prefix))
                current, tokens, wants = [], len(row.tokens), len(row.wants)
        current.append(row)
    if current:
        batches.append(collate(current, prefix))
    return batches


def collate(rows: Sequence[Row], prefix: tuple[int, ...] = ()) -> Batch:
    """Return ``rows``, which follow ``prefix``, as tensors."""
    length = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.tokens)] = torch.tensor(row.tokens)
    flat = [(number * length + w.node, w.token, w.request) for number, row in enumerate(rows) for w in row.wants]
    places, targets, requests = (column.contiguous() for column in _columns(flat))
    positions, last = None, None
    if prefix or any(row.branches for row in rows):
        positions, last = _attention(rows, length)
        positions += len(prefix)
    return Batch(tuple(rows), prefix, ids, places, targets, requests, positions, last)


def _columns(flat: Sequence[tuple[int, int, int]]) -> tuple[torch.Tensor, ...]:
    return torch.tensor(flat, dtype=torch.int64).reshape(-1, 3).unbind(1)


def _attention(rows: Sequence[Row], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Position of each token in its row, and the place of the last token that sees it."""
    if not any(row.branches for row in rows):
        return torch.arange(length)[None], torch.full((1, length), length - 1)
    positions = torch.zeros(len(rows), length, dtype=torch.int64)
    # padding sees itself only: a row of the mask that is empty makes NaN
    last = torch.arange(length).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        positions[number, : len(row.tokens)] = torch.tensor(row.depths)
        last[number, : len(row.tokens)] = torch.tensor(row.last)
    return positions, last
