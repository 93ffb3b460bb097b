"""Tensors that are made once and then mapped from the cache folder by every worker of the machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from evomerge.atomic import replacing
from evomerge.errors import NotEnoughRoom
from evomerge.merging.pieces import Fill
from evomerge.merging.safetensors_writer import Shard, info_of, write_shard
from evomerge.merging.sources import CACHE_VARIABLE, cache_folder

_KEY = "vectors"


def prepared(kind: str, key: str, name: str, make: Callable[[], Tensor]) -> Tensor:
    """Return tensor ``name`` of what ``kind`` (a folder of the cache) and ``key`` name, making it if no one has.

    Raises:
        NotEnoughRoom: it cannot be written.
    """
    file = cache_folder() / kind / key / f"{name}.safetensors"
    if not file.is_file():
        write(file, make())
    return mapped(file)


def prepared_in_pieces(
    kind: str, key: str, name: str, shape: tuple[int, ...], dtype: torch.dtype, fill: Fill
) -> Tensor:
    """Return the same for a flat tensor that ``fill`` makes piece by piece, so that it is never held.

    Raises:
        NotEnoughRoom: it cannot be written.
    """
    file = cache_folder() / kind / key / f"{name}.safetensors"
    if not file.is_file():
        with in_the_cache(file), replacing(file) as temporary:
            shard = Shard(temporary.name, {_KEY: info_of((math.prod(shape),), dtype)})
            write_shard(shard, temporary.parent, merge=lambda _: fill)
    return mapped(file)


@lru_cache(maxsize=8192)
def mapped(file: Path) -> Tensor:
    """Return the tensor that `write` put into ``file``."""
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(_KEY)
    return tensor


def write(file: Path, tensor: Tensor) -> None:
    """Write one tensor to a file of the cache folder.

    Raises:
        NotEnoughRoom: it cannot be written.
    """
    with in_the_cache(file), replacing(file) as temporary:
        save_file({_KEY: tensor}, temporary)


@contextmanager
def in_the_cache(file: Path) -> Iterator[None]:
    """Inside, what goes wrong with writing ``file`` is said with its remedy.

    Raises:
        NotEnoughRoom: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise NotEnoughRoom(
            f"{file.parent}: what is prepared once cannot be written ({error}); let {CACHE_VARIABLE} name a folder "
            "with room"
        ) from None
