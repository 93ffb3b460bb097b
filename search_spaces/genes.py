"""Genes and genomes: the coordinates of one search space, with bounds that are real bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gene:
    """One real coordinate: `low` <= value <= `high`, and where a search starts."""

    name: str
    low: float
    high: float
    start: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"gene {self.name}: bounds must be finite with low < high, got [{self.low}, {self.high}]")
        if not self.low <= self.start <= self.high:
            raise ValueError(f"gene {self.name}: start {self.start} lies outside [{self.low}, {self.high}]")


class Genome:
    """One point of a search space. A value: the array is a read-only copy.

    Attributes:
        values: (dim,) float64, in the order of the space's genes.
    """

    __slots__ = ("values",)

    def __init__(self, values: Sequence[float] | Vector) -> None:
        array = np.array(values, dtype=np.float64).reshape(-1)
        if not np.isfinite(array).all():
            raise ValueError("a genome holds finite numbers only")
        array.setflags(write=False)
        self.values: Vector = array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genome) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        return f"Genome({self.values.tolist()})"

    def to_bytes(self) -> bytes:
        """Return the values as little-endian float64, exact."""
        return self.values.astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Genome:
        """Read what `to_bytes` wrote."""
        return cls(np.frombuffer(data, dtype="<f8"))


@dataclass(frozen=True)
class Genes:
    """The ordered genes of a space."""

    genes: tuple[Gene, ...]

    def __post_init__(self) -> None:
        names = [gene.name for gene in self.genes]
        if not names:
            raise ValueError("a search space needs at least one gene")
        if len(set(names)) < len(names):
            raise ValueError(f"gene names must be different: {sorted({n for n in names if names.count(n) > 1})}")

    def __len__(self) -> int:
        return len(self.genes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(gene.name for gene in self.genes)

    @property
    def low(self) -> Vector:
        """(dim,) lower bounds."""
        return np.array([gene.low for gene in self.genes])

    @property
    def high(self) -> Vector:
        """(dim,) upper bounds."""
        return np.array([gene.high for gene in self.genes])

    @property
    def start(self) -> Vector:
        """(dim,) where a search starts."""
        return np.array([gene.start for gene in self.genes])

    def contains(self, genome: Genome) -> bool:
        """Whether ``genome`` has the right length and lies inside the bounds, ends included."""
        values = genome.values
        return values.shape == (len(self),) and bool(((values >= self.low) & (values <= self.high)).all())

    def check(self, genome: Genome) -> Genome:
        """Return ``genome``.

        Raises:
            ValueError: wrong length, or a value outside its bounds (the gene is named).
        """
        if genome.values.shape != (len(self),):
            raise ValueError(f"genome has {genome.values.size} values, the space has {len(self)} genes")
        for gene, value in zip(self.genes, genome.values, strict=True):
            if not gene.low <= value <= gene.high:
                raise ValueError(f"gene {gene.name} is {value}, outside [{gene.low}, {gene.high}]")
        return genome

    def named(self, genome: Genome) -> Mapping[str, float]:
        """Return the values of ``genome`` by gene name."""
        return dict(zip(self.names, self.check(genome).values.tolist(), strict=True))
