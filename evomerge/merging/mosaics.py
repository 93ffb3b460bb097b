"""From the body of a mosaic's recipe to the kernels that merge each tensor: one linear pass, segment by segment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from evomerge.errors import BadRecipe
from evomerge.merging.coefficients import weighted
from evomerge.merging.pieces import Piece
from search_spaces.tiles import MosaicBody, TileGrid

_Layout = tuple[int, tuple[tuple[str, tuple[str, ...]], ...]]


class Mosaics:
    """Lays mosaics over the tensors of one architecture."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """``sizes``: elements of every merged tensor by name."""
        self._sizes = dict(sizes)
        self._grids: dict[_Layout, TileGrid] = {}

    def pieces(self, body: MosaicBody, name: str) -> Iterator[Piece]:
        """Yield the pieces of tensor ``name``, which cover it in order.

        Raises:
            BadRecipe: the mosaic was made for other tensors.
            CandidateFailed: a coefficient is beyond float32.
        """
        grid = self._grid(body)
        place = grid.tensors[name]
        chromosome = body.chromosomes[place.chromosome]
        for span in grid.spans(name, chromosome.boundaries):
            yield Piece(span.start, span.stop, weighted(chromosome.coefficients[span.segment]))

    def _grid(self, body: MosaicBody) -> TileGrid:
        layout = tuple((chromosome.name, chromosome.tensors) for chromosome in body.chromosomes)
        key = (body.tile, layout)
        if key not in self._grids:
            try:
                self._grids = {key: TileGrid.of(self._sizes, body.tile, layout)}
            except ValueError as error:
                raise BadRecipe(f"mosaic: {error}") from None
        grid = self._grids[key]
        for chromosome, tiles in zip(body.chromosomes, grid.tiles, strict=True):
            if chromosome.boundaries[-1] != tiles:
                raise BadRecipe(
                    f"mosaic: chromosome {chromosome.name} covers {chromosome.boundaries[-1]} tiles of {body.tile} "
                    f"elements, the tensors of these sources make {tiles}; use the sources it was made for"
                )
        return grid
