"""Mosaics: members of natural niches as coefficient tables, and their algebra on inner products of the sources.

A child of split-point SLERP merges of linear combinations of the sources is a linear combination of the sources in
every segment; its coefficients follow from the angles between its parents, and these from the inner products of the
sources in every tile. So no member's weights are ever made to breed it, and a member of any ancestry is one linear pass
over the sources. The rule for small angles is that of materialised SLERP (`search_spaces.slerp`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from search_spaces.genes import Genome, Vector
from search_spaces.slerp import slerp_coefficients
from search_spaces.tiles import Integers, Sphere, TileGrid

Table: TypeAlias = npt.NDArray[np.float64]
TAG = b"mosaic\xf8\x7f"  # the first eight bytes; read as a float64 they are NaN, which no vector of genes holds


class Segments(NamedTuple):
    """One chromosome: ``boundaries`` (segments + 1,) in tiles, from 0; ``coefficients`` (segments, sources)."""

    boundaries: Integers
    coefficients: Table


class Mosaic(Genome):
    """A genome of a coefficient per source for every segment of every chromosome. Neighbours with equal rows are one.

    Attributes:
        segments: one per chromosome.
        values: (chromosomes * sources,) mean coefficients over the tiles, chromosome by chromosome: a summary for
            tables and figures, which does not make a mosaic.
    """

    __slots__ = ("segments",)

    def __init__(self, segments: Sequence[Segments]) -> None:
        self.segments = tuple(_joined(each) for each in segments)
        means = [np.diff(s.boundaries) @ s.coefficients / s.boundaries[-1] for s in self.segments]
        super().__init__(np.concatenate(means))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mosaic) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        return f"Mosaic of {[len(s.coefficients) for s in self.segments]} segments"

    def to_bytes(self) -> bytes:
        """Return the tag, the numbers of chromosomes and sources, and of each chromosome the number of segments,
        boundaries and coefficients: little-endian int64 and float64, exact."""
        sources = self.segments[0].coefficients.shape[1]
        parts = [TAG, _integers([len(self.segments), sources])]
        for boundaries, coefficients in self.segments:
            parts += [_integers([len(coefficients)]), _integers(boundaries), coefficients.astype("<f8").tobytes()]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Mosaic:
        """Read what `to_bytes` wrote."""
        chromosomes, sources = np.frombuffer(data, "<i8", 2, len(TAG)).tolist()
        at, segments = len(TAG) + 16, []
        for _ in range(chromosomes):
            count = int(np.frombuffer(data, "<i8", 1, at)[0])
            boundaries = np.frombuffer(data, "<i8", count + 1, at + 8)
            at += 8 * (count + 2)
            rows = np.frombuffer(data, "<f8", count * sources, at).reshape(count, sources)
            at += 8 * count * sources
            segments.append(Segments(boundaries, rows))
        return cls(segments)


def read_genome(data: bytes) -> Genome:
    """Return the genome, of whichever kind, whose `to_bytes` wrote ``data``."""
    return Mosaic.from_bytes(data) if data.startswith(TAG) else Genome.from_bytes(data)


def _integers(values: Sequence[int] | Integers) -> bytes:
    return np.asarray(values).astype("<i8").tobytes()


def _joined(segments: Segments) -> Segments:
    boundaries = np.asarray(segments.boundaries, dtype=np.int64)
    rows = np.asarray(segments.coefficients, dtype=np.float64)
    starts = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]).any(axis=1)))
    joined = Segments(np.append(boundaries[starts], boundaries[-1]), rows[starts] + 0.0)  # -0.0 is 0.0
    for array in joined:
        array.setflags(write=False)
    return joined


class MosaicAlgebra:
    """Makes and crosses mosaics over one grid."""

    def __init__(self, grid: TileGrid, products: Table, *, sphere: Sphere = "weights") -> None:
        """Take the sources' inner products.

        Args:
            products: (tiles, sources, sources) float64 of every tile, tensors in the order of their names: inner
                products of the base and the task vectors (`evomerge.merging.products`). Small differences between
                large sources would be lost in products of the sources themselves.
            sphere: what SLERP keeps the length of: whole weights, as the paper does, or task vectors.
        """
        self.grid = grid
        self.sources = products.shape[1]
        self._sphere = sphere
        self._elements = [grid.elements(c) for c in range(len(grid.chromosomes))]
        self._sums = [_running_sums(products[self._rows(c)]) for c in range(len(grid.chromosomes))]

    def _rows(self, chromosome: int) -> npt.NDArray[np.bool_]:
        places = self.grid.tensors.values()
        return np.repeat([p.chromosome == chromosome for p in places], [p.tiles for p in places])

    @property
    def founders(self) -> tuple[Mosaic, ...]:
        """The experts, and the base if there is one expert only."""
        first = 1 if self.sources > 2 else 0
        return tuple(self.constant(np.eye(self.sources)[source]) for source in range(first, self.sources))

    def constant(self, coefficients: Sequence[float] | Vector) -> Mosaic:
        """Return the mosaic with the same (sources,) ``coefficients`` everywhere."""
        row = np.asarray(coefficients, dtype=np.float64)[None]
        return Mosaic([Segments(np.array([0, len(each)]), row) for each in self._elements])

    def cross(self, one: Mosaic, other: Mosaic, rng: np.random.Generator, *, split: bool = True) -> Mosaic:
        """Return ``SLERP_w(one, other)`` before a split point and ``SLERP_{1-w}`` from there on, in each chromosome.

        w and the split point are drawn for each chromosome: w uniformly from [0, 1), the split point as the start of
        the tile of a uniformly drawn element. Each side has its own angle (the paper's formula; its code has one for
        both). Without ``split`` the whole chromosome is one side.
        """
        pairs = zip(one.segments, other.segments, strict=True)
        return Mosaic([self._crossed(c, *pair, self._cut(c, rng, split), rng) for c, pair in enumerate(pairs)])

    def _cut(self, chromosome: int, rng: np.random.Generator, split: bool) -> int:
        elements = self._elements[chromosome]
        if not split:
            return len(elements)
        element = rng.integers(elements.sum())
        return int(np.searchsorted(np.cumsum(elements), element, side="right"))

    def _crossed(self, chromosome: int, one: Segments, other: Segments, cut: int, rng: np.random.Generator) -> Segments:
        edges = np.unique(np.concatenate([one.boundaries, other.boundaries, [cut]]))
        first, second = (s.coefficients[_segment_of(s, edges[:-1])] for s in (one, other))
        sums = self._sums[chromosome]
        products = sums[edges[1:]] - sums[edges[:-1]]
        ratio, left = float(rng.random()), edges[:-1] < cut
        child = np.empty_like(first)
        for side, t in ((left, ratio), (~left, 1.0 - ratio)):
            p, q = self._coefficients(first[side], second[side], products[side], t)
            child[side] = p * first[side] + q * second[side]
        if self._sphere == "task_vectors":
            child[:, 0] = 1.0 - child[:, 1:].sum(axis=1)
        return Segments(edges, child)

    def _coefficients(self, first: Table, second: Table, products: Table, t: float) -> tuple[float, float]:
        """SLERP coefficients of two vectors given by rows over segments with these ``products``."""
        x, y = self._in_basis(first), self._in_basis(second)
        pairs = ((x, x), (y, y), (x, y))
        first_square, second_square, product = (float(np.einsum("nk,nkl,nl->", a, products, b)) for a, b in pairs)
        return slerp_coefficients(first_square, second_square, product, t)

    def _in_basis(self, rows: Table) -> Table:
        """From coefficients of the sources to those of the base and the task vectors."""
        changed = rows.copy()
        changed[:, 0] = 0.0 if self._sphere == "task_vectors" else rows.sum(axis=1)
        return changed


def _running_sums(products: Table) -> Table:
    sums = np.zeros((len(products) + 1, *products.shape[1:]))
    np.cumsum(products, axis=0, out=sums[1:])
    return sums


def _segment_of(segments: Segments, tiles: Integers) -> npt.NDArray[np.intp]:
    return np.asarray(np.searchsorted(segments.boundaries, tiles, side="right") - 1)
