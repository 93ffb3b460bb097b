"""From a search file to its space of mosaics: the tile grid and the inner products of its sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from evomerge.config import SearchFile
from evomerge.errors import BadSearch
from evomerge.merging import compatibility
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.products import cached_tile_products, table_bytes
from evomerge.shares import by_tenths, shares
from search_spaces.mosaic import MosaicAlgebra
from search_spaces.mosaic_space import MosaicSpace, MosaicSpaceSettings
from search_spaces.recipe import Source
from search_spaces.tiles import TileGrid
from search_spaces.vocabulary import Vocabulary, vocabulary_keys


def mosaic_space(
    file: SearchFile,
    settings: MosaicSpaceSettings,
    pinned: tuple[Source, ...],
    checkpoints: Sequence[Checkpoint],
    say: Callable[[str], None],
    *,
    vocabulary: Vocabulary | None = None,
) -> MosaicSpace:
    """Return the space of mosaics over ``checkpoints``, in the order of the ``pinned`` sources.

    Raises:
        BadSearch: the chromosomes do not fit the tensors.
        NotEnoughRoom: the table of inner products does not fit into memory.
    """
    names = sorted(compatibility.mergeable_names(checkpoints[0]))
    sizes = {name: math.prod(checkpoints[0].info(name).shape) for name in names}
    try:
        grid = TileGrid.of(sizes, settings.tile, settings.layout(names))
    except ValueError as error:
        raise BadSearch(f"space: {error}") from None
    size = table_bytes(sum(grid.tiles), len(pinned)) / 2**20
    say(f"inner products of the sources in {sum(grid.tiles):,} tiles ({size:.1f} MiB)")
    products = cached_tile_products(
        checkpoints,
        names,
        settings.tile,
        digests=[*(source.identity for source in pinned), *vocabulary_keys(vocabulary)],
        progress=shares(by_tenths(say), "inner products of the sources"),
    )
    return MosaicSpace(
        settings=settings,
        sources=pinned,
        expert_names=tuple(source.short_name for source in file.sources.experts),
        layers=checkpoints[0].layers,
        algebra=MosaicAlgebra(grid, products, sphere=settings.sphere),
        dtype=file.sources.dtype,
        vocabulary=vocabulary,
    )
