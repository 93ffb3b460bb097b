"""LoRA adapters (PEFT) as experts: an adapter stands for its base with ``scale B A`` added, tensor by tensor.

Every operator then merges it as any other expert. The sum is made in float32, so that nothing of a small delta is lost
to the base's dtype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from evomerge.errors import BadSource
from evomerge.foreign import read_json
from evomerge.merging.checkpoint import Checkpoint, TensorInfo
from evomerge.merging.prepared import prepared
from evomerge.merging.sources import BASIS, COEFFICIENTS, fingerprint
from search_spaces.canonical import digest
from search_spaces.tensors import agree

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FORMAT = 1  # of prepared tensors: a change makes what lies in caches obsolete
PREFIX = "base_model.model."  # of every name in an adapter
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.(?!bias)\w+)?$")
_REFUSED = {  # truthy settings of PEFT's LoraConfig under which the delta is not scale B A
    "use_dora": "DoRA, which scales whole columns of the merged weights",
    "use_qalora": "QA-LoRA, made for quantised bases",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "biases inside the adapter",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "adapted parameters of experts (target_parameters)",
    "alora_invocation_tokens": "activated LoRA, which works after certain tokens only",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # initialisations that train against another base


@dataclass(frozen=True)
class Factors:
    """``scale B A``, (rows, columns) of a matrix, or its transpose where the base stores it so.

    Attributes:
        down: A, (rank, columns).
        up: B, (rows, rank).
    """

    down: Tensor
    up: Tensor
    scale: float
    transposed: bool

    def delta(self) -> Tensor:
        """Return the delta in the base's layout, float32."""
        found = (self.up.float() * self.scale) @ self.down.float()
        return found.T if self.transposed else found


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter, or coefficients in a basis, and no model."""
    found = any((folder / name).is_file() for name in (CONFIG, COEFFICIENTS))
    return found and not (folder / "config.json").is_file()


class Adapter(Checkpoint):
    """An expert that is its base plus low-rank deltas. Use `Adapter.on`."""

    def __init__(self, folder: Path, base: Checkpoint, factors: dict[str, Factors], whole: dict[str, Tensor]) -> None:
        """Keep what `on` found: deltas, and tensors that the adapter replaces as a whole."""
        self.base, self.path, self.home = base, folder, base.home
        self.config, self.layers, self.order, self.names = base.config, base.layers, base.order, base.names
        self._factors, self._whole = factors, whole
        self._key: str | None = None
        self._last: tuple[str, Tensor] | None = None
        self.bytes = sum(self.info(name).bytes for name in self.names)

    @classmethod
    def on(cls, base: Checkpoint, folder: Path) -> Adapter:
        """Open the adapter in ``folder`` for ``base``.

        Raises:
            BadSource: it is no LoRA adapter, of a kind that is no sum, damaged, or made for another base.
        """
        if (folder / COEFFICIENTS).is_file():
            return cls(folder, base, *_in_basis(folder, base))
        config = _read_config(folder)
        factors, whole = _sort(_read_weights(folder), config, base, folder)
        _check_base(config, base, folder, list(factors))
        return cls(folder, base, factors, whole)

    @property
    def mapped(self) -> bool:
        """Whether tensors lie in files; otherwise each is made anew when it is asked for."""
        return self._key is not None

    @property
    def changed(self) -> tuple[str, ...]:
        """The tensors that differ from the base's."""
        return tuple({**self._factors, **self._whole})

    def keep(self) -> Adapter:
        """Make every adapted tensor once only: it is kept in the cache folder, float32, and mapped from there."""
        contents = [fingerprint(self.base.path), fingerprint(self.path)]
        self._key = digest({"format": _FORMAT, "sources": contents})
        return self

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and size in bytes of tensor ``name``; adapted tensors are float32."""
        known = self.base.info(name)
        if name not in self._factors and name not in self._whole:
            return known
        return TensorInfo(torch.float32, known.shape, 4 * math.prod(known.shape))

    def tensor(self, name: str) -> Tensor:
        """Return tensor ``name``: the base's own view, or the adapted one in float32."""
        if name not in self._factors and name not in self._whole:
            return self.base.tensor(name)
        if self._key is not None:
            return prepared("adapters", self._key, name, lambda: self._adapted(name))
        if self._last is None or self._last[0] != name:  # operators read a tensor several times, then the next
            self._last = name, self._adapted(name)
        return self._last[1]

    def factors(self, name: str) -> Factors | None:
        """Return the low-rank delta of tensor ``name``; none where the adapter leaves the base.

        Raises:
            BadSource: it replaces the tensor, or adapts an embedding or a transposed matrix.
        """
        found = self._factors.get(name)
        if name in self._whole or (found is not None and found.transposed):
            raise BadSource(f"{self.path}: what it does to {name!r} cannot be written as an adapter of plain matrices")
        return found

    def _adapted(self, name: str) -> Tensor:
        start = self._whole[name] if name in self._whole else self.base.tensor(name)
        found = self._factors.get(name)
        return (start.float() if found is None else found.delta() + start.float()).contiguous()


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config = read_json(file)
        kind = str(config.get("peft_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise BadSource(f"{file}: not readable as the JSON object of an adapter ({error})") from None
    if kind != "LORA":
        raise BadSource(f"{folder}: an adapter of kind {kind}; only LORA adapters are sums of low-rank matrices")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise BadSource(f"{folder}: {what} ({key} in {CONFIG}); merge it into its base with PEFT first")
    start = str(config.get("init_lora_weights")).lower()
    if any(start.startswith(kind) for kind in _CHANGES_BASE):
        raise BadSource(
            f"{folder}: trained from init_lora_weights {start!r}, which changes the base; save it converted to plain "
            "LoRA (path_initial_model_for_weight_conversion of PEFT's save_pretrained)"
        )
    return dict(config)


def _check_base(config: dict[str, Any], base: Checkpoint, folder: Path, adapted: Sequence[str]) -> None:
    """Refuse an adapter whose own base is here and holds other weights: names differ from machine to machine."""
    named = Path(config.get("base_model_name_or_path") or "")
    if not (named / "config.json").is_file() or named.resolve() == base.path.resolve():
        return
    if fingerprint(named) == fingerprint(base.path):
        return
    own = Checkpoint.open(named)
    for name in adapted:
        if name not in own.names or not _same(own.tensor(name), base.tensor(name)):
            raise BadSource(
                f"{folder}: an adapter for {named}; {base.path} has another {name!r}: name that as the base"
            )


def _same(one: Tensor, two: Tensor) -> bool:
    """Whether both hold the same numbers, as far as the coarser of their dtypes tells them apart."""
    coarse = min((one.dtype, two.dtype), key=lambda dtype: dtype.itemsize)
    return one.shape == two.shape and torch.equal(one.to(coarse), two.to(coarse))


def _in_basis(folder: Path, base: Checkpoint) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Return the deltas and the replaced tensors of an expert that lies in ``folder`` as coefficients in a basis.

    Raises:
        BadSource: the basis is missing, damaged, or of another base.
    """
    file = folder.parent / BASIS
    if not file.is_file():
        raise BadSource(f"{folder}: coefficients without their basis; there is no {file}")
    with safe_open(file, framework="pt") as opened:
        of = (opened.metadata() or {}).get("base")
    if of != fingerprint(base.path):
        raise BadSource(f"{folder}: coefficients for another base than {base.path}, whose content differs")
    bases, coefficients = _read_file(file), _read_file(folder / COEFFICIENTS)
    factors, whole = {}, {}
    for name, tensor in coefficients.items():
        if name not in base.names:
            raise BadSource(f"{folder}: {base.path} has no tensor {name!r}: these are coefficients for another base")
        if tensor.ndim != 2:
            whole[name] = tensor
        elif name in bases and tensor.shape[1] == bases[name].shape[0]:
            factors[name] = Factors(bases[name], tensor, 1.0, False)
        else:
            raise BadSource(f"{folder}: {file} has no basis that fits the coefficients of {name!r}")
        shape = (tensor.shape[0], *bases[name].shape[1:]) if name in factors else tuple(tensor.shape)
        _check_shape(shape, name, base, folder)
    return factors, whole


def _read_weights(folder: Path) -> dict[str, Tensor]:
    file = folder / WEIGHTS
    if not file.is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        hint = ": it has a pickle, which can run code when read; save it with safetensors" if pickle else ""
        raise BadSource(f"{folder}: there is no {WEIGHTS}{hint}")
    return _read_file(file)


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise BadSource(f"{file}: truncated or not safetensors ({error}); download or save it again") from None
    for name, tensor in weights.items():
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise BadSource(f"{file}: tensor {name!r} is {tensor.dtype}: quantised adapters cannot be merged")
        if not bool(torch.isfinite(tensor).all()):
            raise BadSource(f"{file}: tensor {name!r} holds NaN or infinite values")
    return weights


def _sort(
    weights: dict[str, Tensor], config: dict[str, Any], base: Checkpoint, folder: Path
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Return the deltas, and the tensors that are replaced, by their names in the base."""
    pairs: dict[tuple[str, bool], dict[str, Tensor]] = {}
    whole = {}
    for key, tensor in weights.items():
        name = key.removeprefix(PREFIX)
        stem = name.removesuffix(".weight")
        if match := _FACTOR.match(stem):
            pairs.setdefault((match[1], bool(match[2])), {})[match[3]] = tensor
        else:
            own = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            whole[_own_name(own, base, folder)] = tensor
    factors = {}
    for (module, embedding), pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise BadSource(f"{folder}: {module} has only one of lora_A and lora_B; save the adapter again")
        name = _own_name(f"{module}.weight", base, folder)
        transposed = embedding or bool(config.get("fan_in_fan_out"))
        rank = pair["A"].shape[0]
        factors[name] = Factors(pair["A"], pair["B"], _scale(config, module, rank), transposed)
        shape = (pair["B"].shape[0], *pair["A"].shape[1:])
        _check_shape(shape[::-1] if transposed else shape, name, base, folder)
    for name, tensor in whole.items():
        _check_shape(tuple(tensor.shape), name, base, folder)
    if not factors and not whole:
        raise BadSource(f"{folder}: {WEIGHTS} holds nothing")
    return factors, whole


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Return alpha / rank, or alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023), with alpha of this very module."""
    patterns = config.get("alpha_pattern") or {}
    matched = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = float(config.get("lora_alpha", 8) if matched is None else patterns[matched])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _own_name(name: str, base: Checkpoint, folder: Path) -> str:
    """Return what the base's files call tensor ``name``: some of them leave out the outermost module."""
    if name in base.names:
        return name
    near = [own for own in base.names if agree(own, name)]
    if len(near) != 1:
        raise BadSource(f"{folder}: {base.path} has no tensor {name!r}: this is an adapter for another base")
    return near[0]


def _check_shape(shape: tuple[int, ...], name: str, base: Checkpoint, folder: Path) -> None:
    own = base.info(name).shape
    if shape != own:
        raise BadSource(
            f"{folder}: its {name!r} has shape {list(shape)}, in {base.path} it is {list(own)}: this is an adapter for "
            "another base"
        )
