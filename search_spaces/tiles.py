"""Tiles: the grid on which mosaics are laid, and the body of a mosaic's recipe.

The tensors of a model in the order of their names, tied ones once, are cut into tiles: aligned runs of `tile` elements
inside one tensor, the last of a tensor shorter. A chromosome is the sequence of the tiles of some of the tensors. A
mosaic cuts each chromosome into segments of whole tiles and merges each segment by a coefficient per source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from search_spaces.canonical import Frozen
from search_spaces.patterns import matches

Integers: TypeAlias = npt.NDArray[np.int64]
Sphere = Literal["weights", "task_vectors"]  # what spherical interpolation keeps the length of
Row = Annotated[tuple[float, ...], Field(min_length=1)]


class Chromosome(Frozen):
    """Tensors whose names match one of `tensors`, and the segments of their tiles."""

    name: str
    tensors: tuple[str, ...] = Field(min_length=1, description="shell-style patterns (* ? []) on the whole name")
    boundaries: tuple[int, ...] = Field(min_length=2, description="first tile of each segment, then how many tiles")
    coefficients: tuple[Row, ...] = Field(min_length=1, description="one row per segment, one number per source")

    @model_validator(mode="after")
    def _segments_are_whole(self) -> Chromosome:
        steps = np.diff(self.boundaries)
        if self.boundaries[0] != 0 or (steps <= 0).any():
            raise ValueError(f"chromosome {self.name}: boundaries must grow from 0, got {_short(self.boundaries)}")
        if len(steps) != len(self.coefficients):
            raise ValueError(
                f"chromosome {self.name}: {len(steps)} segments need as many rows of coefficients, "
                f"got {len(self.coefficients)}"
            )
        return self


class MosaicBody(Frozen):
    """The body of a mosaic's recipe. The first chromosome that matches a tensor has it."""

    kind: Literal["mosaic"] = "mosaic"
    tile: int = Field(ge=1, description="elements")
    chromosomes: tuple[Chromosome, ...] = Field(min_length=1)


class Tiled(NamedTuple):
    """Where a tensor lies: its chromosome, its first tile there, and how many tiles and elements it has."""

    chromosome: int
    first: int
    tiles: int
    elements: int


class Span(NamedTuple):
    """Elements [start, stop) of a tensor that lie in one segment of its chromosome."""

    start: int
    stop: int
    segment: int


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one architecture.

    Attributes:
        tile: elements of a tile.
        sizes: (name, elements) of every tensor, sorted by name.
        chromosomes: (name, patterns) of each; together they cover all tensors.
    """

    tile: int
    sizes: tuple[tuple[str, int], ...]
    chromosomes: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, sizes: Mapping[str, int], tile: int, chromosomes: Sequence[tuple[str, tuple[str, ...]]]) -> TileGrid:
        """Lay the grid over tensors of ``sizes`` elements by name.

        Raises:
            ValueError: a tensor belongs to no chromosome, or a chromosome has no tensor.
        """
        grid = cls(tile, tuple(sorted(sizes.items())), tuple(chromosomes))
        filled = {place.chromosome for place in grid.tensors.values()}
        for number, (name, patterns) in enumerate(grid.chromosomes):
            if number not in filled:
                raise ValueError(f"chromosome {name!r}: no tensor is left for {list(patterns)}")
        return grid

    @cached_property
    def tensors(self) -> Mapping[str, Tiled]:
        """Where each tensor lies, in order of the names."""
        found, counts = {}, [0] * len(self.chromosomes)
        for name, elements in self.sizes:
            chromosome = self._chromosome(name)
            tiles = -(-elements // self.tile)
            found[name] = Tiled(chromosome, counts[chromosome], tiles, elements)
            counts[chromosome] += tiles
        return found

    def _chromosome(self, name: str) -> int:
        for number, (_, patterns) in enumerate(self.chromosomes):
            if matches(name, patterns):
                return number
        raise ValueError(f"no chromosome covers tensor {name!r}")

    @cached_property
    def tiles(self) -> tuple[int, ...]:
        """How many tiles each chromosome has."""
        counts = [0] * len(self.chromosomes)
        for place in self.tensors.values():
            counts[place.chromosome] += place.tiles
        return tuple(counts)

    def elements(self, chromosome: int) -> Integers:
        """Return the elements of each tile of a chromosome, (tiles,)."""
        parts = []
        for place in self.tensors.values():
            if place.chromosome == chromosome and place.tiles:
                part = np.full(place.tiles, self.tile, dtype=np.int64)
                part[-1] = place.elements - (place.tiles - 1) * self.tile
                parts.append(part)
        return np.concatenate(parts)

    def spans(self, name: str, boundaries: Sequence[int] | Integers) -> Iterator[Span]:
        """Yield the parts of tensor ``name`` by the segments that ``boundaries`` of its chromosome make."""
        place = self.tensors[name]
        stop = place.first + place.tiles
        segment = int(np.searchsorted(boundaries, place.first, side="right")) - 1
        at = place.first
        while at < stop:
            end = min(int(boundaries[segment + 1]), stop)
            yield Span((at - place.first) * self.tile, min((end - place.first) * self.tile, place.elements), segment)
            at, segment = end, segment + 1


def _short(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:6]))
    return f"[{shown}{', ...' if len(values) > 6 else ''}]"
