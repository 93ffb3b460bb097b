"""Genes and genomes: the coordinates of one search space, with bounds that are real bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float64]


_PLACES = re.compile(r"/(?:layers-\d+-\d+|knot-\d+).*|\.\d+")  # and of paths, the layers of models
GeneKind = Literal["real", "integer", "categorical"]


@dataclass(frozen=True)
class Gene:
    """One coordinate: `low` <= value <= `high`, and where a search starts.

    Attributes:
        kind: what lies between the bounds. `integer`: whole numbers with an order. `categorical`: the numbers
            0 to `choices` - 1 of choices without one. Both are kept as whole floats.
    """

    name: str
    low: float
    high: float
    start: float
    kind: GeneKind = "real"

    @classmethod
    def integer(cls, name: str, low: int, high: int, start: int) -> Gene:
        """Return a gene of the whole numbers from ``low`` to ``high``, ends included."""
        return cls(name, float(low), float(high), float(start), "integer")

    @classmethod
    def categorical(cls, name: str, choices: int, start: int = 0) -> Gene:
        """Return a gene of ``choices`` (at least two) that have no order."""
        return cls(name, 0.0, float(choices - 1), float(start), "categorical")

    @property
    def choices(self) -> int:
        """Number of values of an integer or categorical gene; 0 for a real one."""
        return 0 if self.kind == "real" else int(self.high - self.low) + 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"gene {self.name}: bounds must be finite with low < high, got [{self.low}, {self.high}]")
        if not self.low <= self.start <= self.high:
            raise ValueError(f"gene {self.name}: start {self.start} lies outside [{self.low}, {self.high}]")
        if self.kind != "real" and not all(float(x).is_integer() for x in (self.low, self.high, self.start)):
            raise ValueError(
                f"gene {self.name}: a gene of kind {self.kind} needs whole numbers, got bounds "
                f"[{self.low}, {self.high}] and start {self.start}"
            )
        if self.kind == "categorical" and self.low != 0.0:
            raise ValueError(f"gene {self.name}: categories are numbered from 0, got {self.low}")


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

    @cached_property
    def whole(self) -> npt.NDArray[np.bool_]:
        """(dim,) whether a gene is integer or categorical."""
        return np.array([gene.kind != "real" for gene in self.genes])

    @cached_property
    def categorical(self) -> npt.NDArray[np.bool_]:
        """(dim,) whether a gene is categorical."""
        return np.array([gene.kind == "categorical" for gene in self.genes])

    @cached_property
    def groups(self) -> npt.NDArray[np.intp]:
        """(dim,) number of the group that a gene belongs to: of those that differ only in where they apply, as the
        weights of one expert in all layers do."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(without_layers(gene.name), len(numbers)) for gene in self.genes])

    def from_unit(self, unit: Vector) -> Vector:
        """Return (..., dim) values inside the bounds for (..., dim) ``unit`` in [0, 1].

        Each whole number gets an equal share of [0, 1], so even points stay even."""
        low, high = self.low, self.high
        values = np.clip(low + unit * (high - low), low, high)  # rounding may step over a bound by one last place
        if not self.whole.any():
            return values
        return np.where(self.whole, np.minimum(low + np.floor(unit * (high - low + 1.0)), high), values)

    def nearest(self, values: Vector) -> Vector:
        """Return (..., dim) ``values`` inside the bounds, with integer and categorical genes rounded to the nearest."""
        inside = np.clip(values, self.low, self.high)
        return np.where(self.whole, np.rint(inside), inside) if self.whole.any() else inside

    def contains(self, genome: Genome) -> bool:
        """Whether ``genome`` has the right length, lies inside the bounds, ends included, and is whole where it must
        be."""
        values = genome.values
        return values.shape == (len(self),) and bool(
            ((values >= self.low) & (values <= self.high) & (~self.whole | (values == np.rint(values)))).all()
        )

    def check(self, genome: Genome) -> Genome:
        """Return ``genome``.

        Raises:
            ValueError: wrong length, a value outside its bounds, or not whole where it must be (the gene is named).
        """
        if genome.values.shape != (len(self),):
            raise ValueError(f"genome has {genome.values.size} values, the space has {len(self)} genes")
        for gene, value in zip(self.genes, genome.values, strict=True):
            if not gene.low <= value <= gene.high:
                raise ValueError(f"gene {gene.name} is {value}, outside [{gene.low}, {gene.high}]")
            if gene.kind != "real" and not float(value).is_integer():
                raise ValueError(f"gene {gene.name} is {value}, but it is {gene.kind}: expected a whole number")
        return genome

    def named(self, genome: Genome) -> Mapping[str, float]:
        """Return the values of ``genome`` by gene name."""
        return dict(zip(self.names, self.check(genome).values.tolist(), strict=True))


def without_layers(name: str) -> str:
    """Return a gene's name without the layers, knots or tensor groups that it is for: what genes of one kind share."""
    return _PLACES.sub("", name)
