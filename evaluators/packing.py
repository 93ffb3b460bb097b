"""Token rows to be scored, and their packing into batches.

A row is a tree of tokens: every token attends to its ancestors only, at the position of its depth. Without branching
a tree is a plain sequence. With branching the answers of one question share the tokens they begin with: context and
all choices cost one row instead of one per choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from evaluators.encoding import Window

# padding tokens a batch may hold: computing more of them costs more than another forward pass
_PADDING = 256


class Want(NamedTuple):
    """The log-likelihood of `token` after the node `node` of a row counts for request `request`."""

    node: int
    token: int
    request: int


@dataclass(frozen=True)
class Row:
    """A tree of tokens in an order where parents come first; the root's parent is -1."""

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


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass, padded on the right to the longest.

    Attributes:
        ids: (rows, length) int64.
        places: (wants,) int64 positions in the flattened (rows * length) hidden states.
        targets, requests: (wants,) int64.
        positions: (rows, length) int64, and `visible`: (rows, 1, length, length) bool, when a row branches.
    """

    rows: tuple[Row, ...]
    ids: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    requests: torch.Tensor
    positions: torch.Tensor | None = None
    visible: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens computed, padding not counted."""
        return sum(len(row.tokens) for row in self.rows)


def tree(windows: Sequence[tuple[int, Window]], *, max_length: int) -> Row:
    """Return one row for all ``windows`` (request, window) that begin with the same token."""
    tokens: list[int] = []
    parents: list[int] = []
    wants: list[Want] = []
    children: dict[tuple[int, int], int] = {}
    for request, window in windows:
        # a context that is too long loses its oldest tokens; the last token of all is never an input
        full = (window.context + window.continuation)[-(max_length + 1) :]
        first_scored = len(full) - len(window.continuation)
        parent = -1
        for depth, token in enumerate(full):
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


def pack(rows: Sequence[Row], *, tokens_per_batch: int, wants_per_batch: int) -> list[Batch]:
    """Pack ``rows``, longest first, within a number of padded tokens and of scored positions per batch."""
    batches: list[Batch] = []
    current: list[Row] = []
    tokens = wants = 0
    for row in sorted(rows, key=lambda row: (row.branches, -len(row.tokens), row.tokens)):
        tokens, wants = tokens + len(row.tokens), wants + len(row.wants)
        if current:
            padded = (len(current) + 1) * len(current[0].tokens)
            over = padded > tokens_per_batch or padded - tokens > _PADDING or wants > wants_per_batch
            if over or row.branches != current[0].branches:
                batches.append(collate(current))
                current, tokens, wants = [], len(row.tokens), len(row.wants)
        current.append(row)
    if current:
        batches.append(collate(current))
    return batches


def collate(rows: Sequence[Row]) -> Batch:
    """Return ``rows`` as tensors."""
    length = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.tokens)] = torch.tensor(row.tokens)
    flat = [(number * length + w.node, w.token, w.request) for number, row in enumerate(rows) for w in row.wants]
    places, targets, requests = torch.tensor(flat, dtype=torch.int64).reshape(-1, 3).unbind(1)
    positions, visible = _branching(rows, length) if any(row.branches for row in rows) else (None, None)
    return Batch(tuple(rows), ids, places.contiguous(), targets.contiguous(), requests.contiguous(), positions, visible)


def _branching(rows: Sequence[Row], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.zeros(len(rows), length, dtype=torch.int64)
    # padding sees itself only: a row of the mask that is empty makes NaN
    visible = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        positions[number, : len(row.tokens)] = torch.tensor(row.depths)
        seen = visible[number]
        for node, parent in enumerate(row.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
    return positions, visible.unsqueeze(1)
