"""Safetensors shards written as a stream: the headers follow from names and shapes, and of the tensors a few pieces are
held at a time.

The library's own writer wants every tensor of a file in memory at once. Here one thread makes pieces, a second hands
them to the system and a third asks it to bring them to the disk, so that the slowest of the three decides.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from evomerge.merging.checkpoint import DTYPES, TensorInfo
from evomerge.merging.pieces import Fill

PIECE = 1 << 19  # elements
BUFFERS = 4
SHARD_BYTES = 5_000_000_000  # most, of a file
_SYNC_BYTES = 64 << 20
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Shard:
    """One file to write: its name and what its tensors are, in order."""

    file: str
    tensors: Mapping[str, TensorInfo]


def plan_shards(tensors: Mapping[str, TensorInfo], *, max_shard_bytes: int) -> tuple[Shard, ...]:
    """Divide tensors, in order, into files of at most ``max_shard_bytes`` (a single tensor may be larger)."""
    parts: list[dict[str, TensorInfo]] = [{}]
    filled = 0
    for name, info in tensors.items():
        if parts[-1] and filled + info.bytes > max_shard_bytes:
            parts.append({})
            filled = 0
        parts[-1][name] = info
        filled += info.bytes
    if len(parts) == 1:
        return (Shard("model.safetensors", parts[0]),)
    count = len(parts)
    return tuple(Shard(f"model-{i:05d}-of-{count:05d}.safetensors", part) for i, part in enumerate(parts, 1))


def tensor_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return the size of a tensor in bytes."""
    return int(torch.Size(shape).numel()) * dtype.itemsize


def info_of(shape: tuple[int, ...], dtype: torch.dtype) -> TensorInfo:
    """Return what a tensor of this shape is in ``dtype``."""
    return TensorInfo(dtype, shape, tensor_bytes(shape, dtype))


def write_shard(shard: Shard, folder: Path, *, merge: Callable[[str], Fill]) -> None:
    """Write ``shard`` into ``folder`` and sync it, asking ``merge`` for what makes each tensor in turn."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # Wider numbers first, so that each begins at a multiple of its size.
    tensors = sorted(shard.tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    for name, info in tensors:
        end = offset + info.bytes
        header[name] = {"dtype": NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with (folder / shard.file).open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        with _written_behind(file, max((info.dtype.itemsize for _, info in tensors), default=1)) as write:
            for name, info in tensors:
                fill, size = merge(name), int(torch.Size(info.shape).numel())
                for start in range(0, size, PIECE):
                    write(fill, info.dtype, start, min(PIECE, size - start))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _written_behind(file: BinaryIO, width: int) -> Iterator[Callable[[Fill, torch.dtype, int, int], None]]:
    """Yield a function that makes elements [start, start + size) of a tensor and leaves writing them to others.

    ``width`` is the size in bytes of the widest number.
    """
    buffers = deque(torch.empty(PIECE * width, dtype=torch.uint8) for _ in range(BUFFERS))
    writes: deque[Future[Any]] = deque()
    syncs: list[Future[None]] = []
    unsynced = 0

    def write(fill: Fill, dtype: torch.dtype, start: int, size: int) -> None:
        nonlocal unsynced
        if len(writes) == BUFFERS:
            writes.popleft().result()
        piece = buffers[0][: size * dtype.itemsize]
        buffers.rotate(-1)
        fill(piece.view(dtype), start)
        writes.append(writer.submit(file.write, piece.numpy().data))
        unsynced += len(piece)
        if unsynced >= _SYNC_BYTES and all(sync.done() for sync in syncs):
            syncs[:] = [syncer.submit(os.fdatasync, file.fileno())]
            unsynced = 0

    with ThreadPoolExecutor(1) as syncer, ThreadPoolExecutor(1) as writer:
        yield write
        for done in (*writes, *syncs):
            done.result()


def write_index(shards: Sequence[Shard], folder: Path) -> None:
    """Write model.safetensors.index.json when there is more than one shard."""
    if len(shards) == 1:
        return
    total = sum(info.bytes for shard in shards for info in shard.tensors.values())
    weight_map = {name: shard.file for shard in shards for name in shard.tensors}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_weights(
    tensors: Mapping[str, TensorInfo],
    folder: Path,
    *,
    merge: Callable[[str], Fill],
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``tensors`` into ``folder`` as one shard, or as several with an index."""
    shards = plan_shards(tensors, max_shard_bytes=max_shard_bytes)
    for shard in shards:
        write_shard(shard, folder, merge=merge)
    write_index(shards, folder)
