"""One source's checkpoint: safetensors files mapped into memory, and its config.

Tensors are views on private copy-on-write mappings: reading them shares the page cache with every other process,
and only what is written to becomes private memory.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.errors import BadSource
from evomerge.foreign import read_json

DTYPES: dict[str, torch.dtype] = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Tables that older versions of transformers stored and every model computes for itself.
_ROTARY_TABLE = re.compile(r"rotary_emb\.inv_freq$")
_ATTENTION_MASK = re.compile(r"\.(attn|attention)\.(masked_)?bias$")


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor; ``bytes`` is its size in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class _Entry:
    """Where one tensor lies: ``begin`` counts bytes from the start of shard ``shard``."""

    info: TensorInfo
    shard: int
    begin: int


class Checkpoint:
    """A model folder, opened for reading. Use `Checkpoint.open`.

    Attributes:
        path: the folder.
        home: the folder with the config.json that applies.
    """

    def __init__(self, path: Path, config: dict[str, Any], shards: list[Path], entries: dict[str, _Entry]) -> None:
        """Keep what `open` found; the files are mapped when the first tensor is asked for."""
        self.path = self.home = path
        self.config = config
        self.layers = _layers(path, config)
        self.order = tuple(sorted(entries, key=lambda name: (entries[name].shard, entries[name].begin)))
        self.names = tuple(sorted(entries))
        self.bytes = sum(entry.info.bytes for entry in entries.values())
        self._shards = shards
        self._entries = entries
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._views: dict[str, Tensor] = {}

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open the folder ``path``: one model.safetensors, or shards with an index.

        Raises:
            BadSource: the folder or one of its files is missing, damaged, quantised or not safetensors.
        """
        path = Path(path)
        config = read_config(path)
        shards, wanted = _find_shards(path)
        entries: dict[str, _Entry] = {}
        for number, shard in enumerate(shards):
            for name, entry in _read_header(shard, number).items():
                if name in entries:
                    raise BadSource(f"{path}: tensor {name!r} is in two shards; save the model again")
                entries[name] = entry
        missing = sorted(wanted - entries.keys())
        if missing:
            raise BadSource(f"{path}: the index names tensors that no shard holds, first {missing[0]!r}")
        entries = {name: entry for name, entry in entries.items() if not _is_recomputed(name, entry.info)}
        if not entries:
            raise BadSource(f"{path}: the safetensors files hold no weights")
        return cls(path, config, shards, entries)

    @property
    def mapped(self) -> bool:
        """Whether tensors lie in files, so that keeping them costs no memory."""
        return True

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and size in bytes of tensor ``name``.

        Raises:
            BadSource: there is no such tensor.
        """
        return self._entry(name).info

    def tensor(self, name: str) -> Tensor:
        """Return tensor ``name`` as a CPU view onto the mapped file, in the file's dtype.

        Raises:
            BadSource: there is no such tensor.
        """
        view = self._views.get(name)
        if view is None:
            entry = self._entry(name)
            dtype, shape = entry.info.dtype, entry.info.shape
            storage = self._storage(entry.shard)
            strides = torch.empty(shape, device="meta").stride()
            view = torch.empty(0, dtype=dtype).set_(storage, entry.begin // dtype.itemsize, shape, strides)
            self._views[name] = view
        return view

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise BadSource(f"{self.path}: there is no tensor {name!r}") from None

    def _storage(self, shard: int) -> torch.UntypedStorage:
        if shard not in self._storages:
            file = self._shards[shard]
            try:
                tensor = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                raise BadSource(f"{file}: cannot be mapped into memory ({error})") from None
            self._storages[shard] = tensor.untyped_storage()
        return self._storages[shard]


def read_config(path: Path) -> dict[str, Any]:
    """Return the config.json of the model folder ``path``.

    Raises:
        BadSource: no folder, no readable config.json, or the weights are quantised.
    """
    if not path.is_dir():
        raise BadSource(f"{path}: there is no such model folder")
    file = path / "config.json"
    if not file.is_file():
        adapter = (path / "adapter_config.json").is_file()
        hint = "; it holds a LoRA adapter, which can be an expert beside its base" if adapter else ""
        raise BadSource(f"{path}: there is no config.json, so this is not a model folder{hint}")
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise BadSource(f"{file}: not readable as JSON ({error})") from None
    if not isinstance(config, dict):
        raise BadSource(f"{file}: expected a JSON object, got {type(config).__name__}")
    for part in (config, text_config(config)):
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                raise BadSource(f"{path}: the weights are quantised ({key} in config.json); use the unquantised model")
    return config


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of ``config`` that describes the language model: itself, or its nested text_config."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _layers(path: Path, config: dict[str, Any]) -> int:
    for part in (text_config(config), config):
        for key in LAYER_COUNTS:
            if isinstance(part.get(key), int) and part[key] > 0:
                return int(part[key])
    raise BadSource(f"{path}: config.json does not say how many layers there are (num_hidden_layers)")


def _find_shards(path: Path) -> tuple[list[Path], set[str]]:
    """Return the safetensors files of ``path`` and the tensors that its index, if any, promises."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.is_file():
        return _read_index(path, index)
    if single.is_file():
        return [single], set()
    if any(True for pattern in _PICKLES for _ in path.glob(pattern)):
        raise BadSource(
            f"{path}: only pickle checkpoints, which can run code when read; safetensors are needed. Convert with "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) if you trust the file"
        )
    raise BadSource(f"{path}: there is neither model.safetensors nor model.safetensors.index.json")


def _read_index(path: Path, index: Path) -> tuple[list[Path], set[str]]:
    try:
        weight_map = read_json(index)["weight_map"]
        files = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadSource(f"{index}: not a safetensors index ({type(error).__name__}: {error})") from None
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise BadSource(f"{index}: shard {file!r} is not a plain file name inside the folder")
        if not (path / file).is_file():
            raise BadSource(f"{path}: shard {file!r} is named by the index but missing; download it again")
    return [path / file for file in files], set(weight_map)


def _read_header(shard: Path, number: int) -> dict[str, _Entry]:
    try:
        with safe_open(str(shard), framework="pt") as handle:  # validates lengths, offsets and overlaps
            handle.keys()
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise BadSource(f"{shard}: truncated or not safetensors ({error}); download or save it again") from None
    header.pop("__metadata__", None)
    return {name: _entry(shard, number, 8 + length, name, value) for name, value in header.items()}


def _entry(shard: Path, number: int, data: int, name: str, value: dict[str, Any]) -> _Entry:
    begin, end = value["data_offsets"]
    shape = tuple(value["shape"])
    dtype = DTYPES.get(value["dtype"])
    if dtype is None:
        placeholder = TensorInfo(torch.uint8, shape, end - begin)
        if _is_recomputed(name, placeholder):
            return _Entry(placeholder, number, data + begin)
        raise BadSource(f"{shard}: tensor {name!r} is {value['dtype']}; only {', '.join(DTYPES)} can be merged")
    if (data + begin) % dtype.itemsize:
        raise BadSource(f"{shard}: tensor {name!r} is not aligned; save the model again with current safetensors")
    return _Entry(TensorInfo(dtype, shape, end - begin), number, data + begin)


def _is_recomputed(name: str, info: TensorInfo) -> bool:
    return bool(_ROTARY_TABLE.search(name)) or (bool(_ATTENTION_MASK.search(name)) and len(info.shape) in (0, 4))
