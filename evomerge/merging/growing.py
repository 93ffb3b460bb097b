"""A safetensors file that grows: tensors are written as they come, and what came is known only at the end.

The header stands first in such a file, so room for all names that may come is left, and what is not used is blank.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from evomerge.merging.safetensors_writer import NAMES

_MOST_OF_ENTRY = 200  # characters beside the name: a dtype, a shape and two offsets


class Growing:
    """The open file; use `growing`."""

    def __init__(self, file: BinaryIO, metadata: Mapping[str, str]) -> None:
        """Write to ``file`` where it stands."""
        self._file, self._offset = file, 0
        self.header: dict[str, object] = {"__metadata__": dict(metadata)}

    @property
    def empty(self) -> bool:
        """Whether no tensor has come."""
        return self._offset == 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write ``tensor``; all of a file have one dtype."""
        flat = tensor.contiguous().view(-1)
        end = self._offset + flat.nbytes
        shape, offsets = list(tensor.shape), [self._offset, end]
        self.header[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": offsets}
        self._file.write(flat.view(torch.uint8).numpy().data)
        self._offset = end


@contextmanager
def growing(path: Path, names: Sequence[str], **metadata: str) -> Iterator[Growing]:
    """Yield the file ``path``, to which some of ``names`` are added; complete once the context ends without error."""
    text = {"format": "pt", **metadata}
    room = len(json.dumps(text)) + sum(len(json.dumps(name)) + _MOST_OF_ENTRY for name in names)
    room += _MOST_OF_ENTRY + -(room + _MOST_OF_ENTRY) % 8
    with path.open("wb") as file:
        file.seek(8 + room)
        found = Growing(file, text)
        yield found
        header = json.dumps(found.header, separators=(",", ":")).encode()
        file.seek(0)
        file.write(room.to_bytes(8, "little") + header.ljust(room))
