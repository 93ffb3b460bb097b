"""The streamed writer makes the bytes that the library's own writer makes, however the system takes them."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from evomerge.merging import safetensors_writer
from evomerge.merging.pieces import Fill
from evomerge.merging.safetensors_writer import Shard, info_of, write_shard

SHAPES = {"a": (7, 513), "b": (), "c": (3,), "d": (90, 101), "e": (0, 4)}


def written(folder: Path, dtype: torch.dtype) -> tuple[bytes, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}

    def merge(name: str) -> Fill:
        def fill(out: torch.Tensor, first: int) -> None:
            out.copy_(tensors[name].view(-1)[first : first + len(out)])

        return fill

    infos = {name: info_of(shape, dtype) for name, shape in SHAPES.items()}
    write_shard(Shard("model.safetensors", infos), folder, merge=merge)
    return (folder / "model.safetensors").read_bytes(), tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("buffer", [8, 4096, 4104, 1 << 20])  # buffers that are blocks of the disk, and that are not
def test_every_tensor_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, buffer: int
) -> None:
    monkeypatch.setattr(safetensors_writer, "BUFFER", buffer)
    found, tensors = written(tmp_path, dtype)
    loaded = load(found)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("where", ["flag", "write"])
def test_a_file_system_without_direct_writes_gets_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "usual").mkdir()
    expected, _ = written(tmp_path / "usual", torch.float32)
    monkeypatch.setattr(safetensors_writer, "BUFFER", 4096)
    set_flags, write = fcntl.fcntl, os.write

    def refuse_flag(handle: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL and value & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return set_flags(handle, command, value)

    def refuse_write(handle: int, data: memoryview) -> int:
        if set_flags(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(handle, data[: max(1, len(data) // 2)])  # nor all at once

    if where == "flag":
        monkeypatch.setattr(fcntl, "fcntl", refuse_flag)
    else:
        monkeypatch.setattr(os, "write", refuse_write)
    found, _ = written(tmp_path, torch.float32)
    assert found == expected


def test_what_the_disk_refuses_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path, torch.float32)
