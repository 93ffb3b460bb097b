"""Which rows begin alike: a few-shot preamble that many documents share is computed once, not once a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from evaluators.packing import Row, Want

# tokens that a prefix must save: it costs a forward pass of its own, and its rows do not share batches with others;
# about 100 tokens' time, of 325,000 parameters as of 110 million (docs/evaluation.md)
_ANOTHER_PASS = 128
# reading the prefix's keys and values costs a little; below this share of the tokens sharing pays
_SHARING_PAYS_BELOW = 0.8


class Group(NamedTuple):
    """Rows to run after the tokens `prefix`, which their own tokens, parents and wants do not count."""

    prefix: tuple[int, ...]
    rows: tuple[Row, ...]


def share(rows: Sequence[Row]) -> list[Group]:
    """Return ``rows`` in groups that share a prefix worth sharing; the first group is that of the rest, without one."""
    ordered = sorted(rows, key=lambda row: row.tokens)
    groups: list[Group] = []
    rest: list[Row] = []
    done = 0
    for span in worthwhile([row.tokens[: trunk(row)] for row in ordered], [len(row.tokens) for row in ordered]):
        rest += ordered[done : span.start]
        inside = tuple(_after(row, span.length) for row in ordered[span.start : span.stop])
        groups.append(Group(ordered[span.start].tokens[: span.length], inside))
        done = span.stop
    rest += ordered[done:]
    return [Group((), tuple(rest)), *groups] if rest else groups


def trunk(row: Row) -> int:
    """Return how many of the first tokens of ``row`` every later one follows and no answer is read from."""
    limit = min(want.node for want in row.wants)
    for node, parent in enumerate(row.parents):
        if parent != node - 1:
            limit = min(limit, parent + 1)
    return max(limit, 0)


def _after(row: Row, length: int) -> Row:
    parents = tuple(max(parent - length, -1) for parent in row.parents[length:])
    wants = tuple(Want(want.node - length, want.token, want.request) for want in row.wants)
    return Row(row.tokens[length:], parents, wants)


class Span(NamedTuple):
    """Sequences ``start`` to ``stop``, not included, share their first ``length`` tokens."""

    start: int
    stop: int
    length: int
    saved: int


@dataclass
class _Open:
    length: int
    start: int
    inner: list[Span] = field(default_factory=list)


def worthwhile(prefixes: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> list[Span]:
    """Return the disjoint spans of sorted ``prefixes`` whose sharing saves most tokens, in order.

    Every set of sequences with a common prefix is an interval of the sorted list, and these intervals form a tree: the
    best choice below each is compared with the interval itself, in one pass.

    Args:
        lengths: tokens of each sequence with what follows its prefix.
    """
    total = [0]
    for length in lengths:
        total.append(total[-1] + length)

    def close(top: _Open, stop: int, inner: list[Span]) -> list[Span]:
        saved = (stop - top.start - 1) * top.length - _ANOTHER_PASS
        enough = saved >= (1 - _SHARING_PAYS_BELOW) * (total[stop] - total[top.start])
        better = saved > sum(span.saved for span in inner)
        return [Span(top.start, stop, top.length, saved)] if saved > 0 and enough and better else inner

    opened: list[_Open] = []
    inner: list[Span] = []
    for place in range(1, len(prefixes) + 1):
        common = common_length(prefixes[place - 1], prefixes[place]) if place < len(prefixes) else -1
        start, inner = place - 1, []
        while opened and opened[-1].length > common:
            top = opened.pop()
            inner = close(top, place, top.inner + inner)
            start = top.start
        if opened and opened[-1].length == common:
            opened[-1].inner += inner
        else:
            opened.append(_Open(common, start, inner))
    return inner


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens ``first`` and ``second`` begin with alike."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(place for place in range(shorter) if first[place] != second[place])
