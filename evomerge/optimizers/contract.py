"""The contract of every optimizer.

An optimizer is pure: no torch, no machines, no clock, one seed. `ask` proposes genomes inside the bounds; `tell`
takes any subset of what was asked, in any order, and also *seeds*: points that it did not propose. The same
sequence of asks and tells gives the same genomes, which is how a search continues after a kill: its record is
replayed. Everything is maximised.

An optimizer may say more: with `needs_documents = True` it is told the scores of single documents, and
`parents_of(genome)` names the points that a genome was made of, from when it is asked for until it is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from search_spaces.genes import Genome, Vector


@dataclass(frozen=True)
class Observation:
    """What became of one point.

    Attributes:
        genome: the point; None for a seed that the space cannot express.
        values: (objectives,) float64, more is better; None when the candidate failed.
        tie_break: smooth stand-in that orders points whose values are equal; more is better.
        seed: whether the point was given rather than asked for.
        estimated: whether racing stopped the point early: its values are estimates from some of the documents. Such a
            point may guide a search but belongs into no front and no archive.
        documents: (documents,) float64 of every objective in order, more is better; given only to optimizers that
            declare `needs_documents`, and None when the candidate failed.
    """

    genome: Genome | None
    values: Vector | None
    tie_break: float = 0.0
    seed: bool = False
    estimated: bool = False
    documents: tuple[Vector, ...] | None = None


@runtime_checkable
class Optimizer(Protocol):
    """See the module's text."""

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds."""

    def tell(self, observations: Sequence[Observation]) -> None:
        """Take in what became of some points."""
