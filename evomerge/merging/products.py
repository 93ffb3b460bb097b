"""Inner products of the sources in every tile: all that breeding mosaics needs of the weights.

One pass over the sources, accumulated in float64, kept in the cache under the digests of the sources.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from evomerge.atomic import replacing
from evomerge.errors import NotEnoughRoom
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.resident import available_bytes
from evomerge.merging.sources import cache_folder
from evomerge.shares import Progress

BLOCK_ELEMENTS = 1 << 20  # of each source that are held as float64 at a time


def tile_products(
    checkpoints: Sequence[Checkpoint], names: Sequence[str], tile: int, *, progress: Progress | None = None
) -> np.ndarray:
    """Return the inner products of the base and the task vectors, ``<b_k, b_l>`` with b_0 the base and
    ``b_i = source_i - base``, float64 (tiles, sources, sources).

    Args:
        checkpoints: the base first.
        names: of the tensors, in the order of the names; each begins a new tile.
        tile: elements.
        progress: called with the elements done and all.

    Raises:
        NotEnoughRoom: the table does not fit into memory.
    """
    counts = [math.prod(checkpoints[0].info(name).shape) for name in names]
    sources, tiles = len(checkpoints), sum(-(-count // tile) for count in counts)
    needed, free = table_bytes(tiles, sources), available_bytes()
    if needed > free:
        raise NotEnoughRoom(
            f"space.tile: inner products of {tiles} tiles of {tile} elements need {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are available; ask for larger tiles"
        )
    table, row, done = np.zeros((tiles, sources, sources)), 0, 0
    for name, count in zip(names, counts, strict=True):
        flat = [checkpoint.tensor(name).view(-1) for checkpoint in checkpoints]
        for start in range(0, count, BLOCK_ELEMENTS // tile * tile or tile):
            stop = min(start + (BLOCK_ELEMENTS // tile * tile or tile), count)
            rows = -(-(stop - start) // tile)
            table[row : row + rows] = _products([part[start:stop] for part in flat], rows, tile)
            row, done = row + rows, done + stop - start
            if progress is not None:
                progress(done, sum(counts))
    return table


def table_bytes(tiles: int, sources: int) -> int:
    """Return the memory of the inner products, in bytes: 8 per tile and pair of sources."""
    return 8 * tiles * sources * sources


def _products(parts: Sequence[torch.Tensor], rows: int, tile: int) -> np.ndarray:
    size = len(parts[0])
    vectors = torch.zeros((len(parts), rows * tile), dtype=torch.float64)
    for vector, part in zip(vectors, parts, strict=True):
        vector[:size] = part
    vectors[1:] -= vectors[0].clone()
    tiled = vectors.view(len(parts), rows, tile).transpose(0, 1)
    return (tiled @ tiled.transpose(1, 2)).numpy()


def cached_tile_products(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    tile: int,
    *,
    digests: Sequence[str],
    progress: Progress | None = None,
    cache: Path | None = None,
) -> np.ndarray:
    """Return `tile_products`, read from the cache if they were made of the same sources before.

    Args:
        digests: of the sources' contents.
        cache: folder; this user's by default.
    """
    key = hashlib.sha256("\n".join([*digests, *names, str(tile), "1"]).encode()).hexdigest()
    path = (cache or cache_folder()) / "products" / f"{key}.npy"
    tiles = sum(-(-math.prod(checkpoints[0].info(name).shape) // tile) for name in names)
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
        if found.shape == (tiles, len(checkpoints), len(checkpoints)) and found.dtype == np.float64:
            return found
    except (OSError, ValueError, EOFError):
        pass  # not there, or not whole: made anew
    table = tile_products(checkpoints, names, tile, progress=progress)
    _write(path, table)
    return table


def _write(path: Path, table: np.ndarray) -> None:
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, table, allow_pickle=False)
    except OSError:
        return  # a read-only cache costs time, not correctness
