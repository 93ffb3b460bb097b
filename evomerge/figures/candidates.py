"""Which candidates a figure shows, and as what. They are numbers here: thousands of records are never loaded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evomerge.columns import Ints
from evomerge.figures.theme import thinned
from evomerge.results import Results


class Shown(NamedTuple):
    """The candidates measured on search documents by what they are, each once.

    Attributes:
        others: numbers of those that are neither on the front nor marked, thinned.
        all_others: how many of them there are.
        front: numbers of the front without the marked ones, the preferred one first.
        marked: role and number of references and winner, the winner last so that it lies on top.
    """

    others: list[int]
    all_others: int
    front: list[int]
    marked: list[tuple[str, int]]


def shown(results: Results, most: int) -> Shown:
    """Return what a figure shows that has room for ``most`` candidates which are nothing special."""
    special = marked(results)
    apart = {number for _, number in special}
    front = [c.number for c in results.front if c.number not in apart]
    measured = results.candidates.measured("search")
    others: Ints = measured[~np.isin(measured, [*apart, *front])]
    return Shown(others[thinned(len(others), most)].tolist(), len(others), front, special)


def marked(results: Results) -> list[tuple[str, int]]:
    """Return role and number of references and winner, as far as they are measured; the winner is the last."""
    winner = results.winner
    pairs = [(results.role(c), c) for c in results.references if winner is None or c.number != winner.number]
    pairs += [("winner", winner)] if winner else []
    return [(role, candidate.number) for role, candidate in pairs if candidate.state == "measured"]
