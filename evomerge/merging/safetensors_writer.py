"""Safetensors shards written as a stream: the headers follow from names and shapes, and of the tensors a few pieces are
held at a time.

The library's own writer wants every tensor of a file in memory at once. Here one thread makes pieces and another
writes them, so that the slower of the two decides. Where the file system takes direct writes, they go to the disk
without a copy in the page cache, which costs more than the merge and would drive the sources out of it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from evomerge.merging.checkpoint import DTYPES, TensorInfo
from evomerge.merging.pieces import Fill

BUFFER, BUFFERS = 1 << 20, 4  # bytes; what is written again and again stays in the second- and third-level cache
SHARD_BYTES = 5_000_000_000  # most, of a file
_DIRECT: int = getattr(os, "O_DIRECT", 0)
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
    head = torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)
    handle = os.open(folder / shard.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _set_direct(handle, on=True)
        with _written_behind(handle) as write:
            write(partial(_copy, head), info_of((len(head),), torch.uint8))
            for name, info in tensors:
                write(merge(name), info)
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _written_behind(handle: int) -> Iterator[Callable[[Fill, TensorInfo], None]]:
    """Yield a function that makes a tensor, piece by piece, and leaves writing it to a second thread.

    What lies before a tensor in the file is a multiple of the size of its numbers.
    """
    buffers = deque(torch.frombuffer(mmap.mmap(-1, BUFFER), dtype=torch.uint8) for _ in range(BUFFERS))
    writes: deque[Future[None]] = deque()
    used = 0

    def write(fill: Fill, info: TensorInfo) -> None:
        nonlocal used
        done = 0
        while done < info.bytes:
            piece = buffers[0][used : used + info.bytes - done]
            fill(piece.view(info.dtype), done // info.dtype.itemsize)
            done, used = done + len(piece), used + len(piece)
            if used == BUFFER:
                hand_over()

    def hand_over() -> None:
        nonlocal used
        writes.append(writer.submit(_put, handle, buffers[0][:used].numpy().data))
        buffers.rotate(-1)
        used = 0
        if len(writes) == BUFFERS:
            writes.popleft().result()

    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        yield write
        hand_over()
        for done in writes:
            done.result()


def _copy(source: Tensor, out: Tensor, first: int) -> None:
    out.copy_(source[first : first + len(out)])


def _put(handle: int, data: memoryview) -> None:
    """Write all of ``data``; what is no whole number of blocks, as the end of a file, cannot be written directly."""
    while data:
        try:
            data = data[os.write(handle, data) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(handle, fcntl.F_GETFL) & _DIRECT:
                raise
            _set_direct(handle, on=False)


def _set_direct(handle: int, *, on: bool) -> None:
    """Write past the page cache from now on, or through it; not every file system can do the former."""
    flags = fcntl.fcntl(handle, fcntl.F_GETFL) & ~_DIRECT
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags | _DIRECT if on else flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


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
