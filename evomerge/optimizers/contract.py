"""The contract of every optimizer.

An optimizer is pure: no torch, no machines, no clock, one seed. `ask` proposes genomes inside the bounds; `tell`
takes any subset of what was asked, in any order, and also *seeds*: points that it did not propose. The same
sequence of asks and tells gives the same genomes, which is how a search continues after a kill: its record is
replayed. Everything is maximised.

An optimizer may say more, by attributes that mean nothing where they are missing: with `needs_documents = True` it is
told the scores of single documents; with `single_number = True` it climbs the weighted mean of the objectives, so that
racing may drop whatever cannot exceed the best one; `generation_of(genome)` says which points are compared with each
other (`HasGenerations`); `parents_of(genome)` names the points that a genome was made of,
from when it is asked for until it is told.
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


@runtime_checkable
class HasGenerations(Protocol):
    """An optimizer that compares points of one generation with each other, and with nobody else."""

    def generation_of(self, genome: Genome) -> int | None:
        """Return the number of the generation of a point that is asked for and not yet told.

        None for a point that is compared with nobody: it is to be measured on all documents.
        """
