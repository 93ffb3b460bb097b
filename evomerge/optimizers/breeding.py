"""How a space makes children: what natural niches and MAP-Elites need of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from evomerge.optimizers.variation import Box, mutate
from search_spaces.genes import Genes, Genome, Vector
from search_spaces.slerp import slerp


class Offspring(NamedTuple):
    """A new point and the points that it was made of."""

    genome: Genome
    parents: tuple[Genome, ...] = ()


class Breeder(Protocol):
    """Makes points of one space. All draws come from the generator that is passed."""

    def found(self, rng: np.random.Generator) -> Offspring:
        """Return a point that needs no archive: a random one, or a random merge of what the space is made of."""

    def cross(self, one: Genome, other: Genome, rng: np.random.Generator) -> Genome:
        """Return a child of two points."""


class GeneBreeder:
    """Vectors of genes: linear interpolation and polynomial mutation of one gene on average, inside the bounds.

    A merge that is linear in its genes is interpolated by interpolating them; their lengths mean nothing, so nothing
    is kept on a sphere.
    """

    def __init__(self, genes: Genes, *, split: bool = True) -> None:
        """``split``: interpolate by w before a random gene and by 1 - w from there on; else by w everywhere."""
        self._box = Box(genes.low, genes.high)
        self._split = split

    def found(self, rng: np.random.Generator) -> Offspring:
        """Return a uniformly random point."""
        return Offspring(Genome(rng.uniform(self._box.low, self._box.high)))

    def cross(self, one: Genome, other: Genome, rng: np.random.Generator) -> Genome:
        """Return a mutated point between ``one`` and ``other``."""
        dim = len(self._box.low)
        at, ratio = rng.integers(dim) if self._split else dim, rng.random()
        t = np.where(np.arange(dim) < at, ratio, 1.0 - ratio)
        crossed = np.clip((1.0 - t) * one.values + t * other.values, self._box.low, self._box.high)  # rounding only
        return Genome(mutate(crossed, self._box, rng))


class WeightBreeder:
    """Vectors of a small network's own weights: split-point SLERP, and Gaussian noise where it starts from scratch."""

    def __init__(
        self, founders: Sequence[Genome], *, split: bool = True, crossover: bool = True, mutation: float = 0.0
    ) -> None:
        """``founders``: at least two; ``mutation``: standard deviation of the noise, in units of weights."""
        if len(founders) < 2:
            raise ValueError(f"founders: expected at least two, got {len(founders)}")
        self._founders = tuple(founders)
        self._split = split
        self._crossover = crossover
        self._mutation = mutation

    def found(self, rng: np.random.Generator) -> Offspring:
        """Return a child of two founders."""
        one, other = rng.choice(len(self._founders), size=2, replace=False).tolist()
        pair = (self._founders[one], self._founders[other])
        return Offspring(self.cross(*pair, rng), pair)

    def cross(self, one: Genome, other: Genome, rng: np.random.Generator) -> Genome:
        """Return ``SLERP_w(one[:s], other[:s])`` followed by ``SLERP_{1-w}(one[s:], other[s:])``, with noise."""
        child = self._crossed(one.values, other.values, rng) if self._crossover else one.values.copy()
        if self._mutation:
            child += rng.normal(0.0, self._mutation, len(child))
        return Genome(child)

    def _crossed(self, one: Vector, other: Vector, rng: np.random.Generator) -> Vector:
        dim = len(one)
        at, ratio = int(rng.integers(dim)) if self._split else dim, float(rng.random())
        return np.concatenate([slerp(one[:at], other[:at], ratio), slerp(one[at:], other[at:], 1.0 - ratio)])
