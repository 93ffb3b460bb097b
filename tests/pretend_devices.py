"""Devices that this machine does not have, pretended: tensors lie on the CPU and carry the name of a device.

Numbers are those of the CPU. Operations refuse tensors of different devices where PyTorch does, so code that forgets
to move one fails here as it would on a machine with GPUs. `test_spread.py` compares that with PyTorch's own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
_LABEL = "_pretended_device"
_MOVES = {"to", "cpu", "cuda", "copy_", "numpy", "type"}
_OF_ANY = {"_has_compatible_shallow_copy_type"}
_INDEXED = {"__getitem__", "__setitem__", "index_put_"}


class MixedDevices(RuntimeError):
    """Tensors of different devices met in one operation."""


def device_of(tensor: Tensor) -> torch.device:
    """Return the device that ``tensor`` is said to be on."""
    return getattr(tensor, _LABEL, CPU)


class PretendedDevices(TorchFunctionMode):
    """Inside, `cuda:0`, `cuda:1`, ... exist."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        owner = getattr(func, "__self__", None)
        if owner is Tensor.device:
            return device_of(args[0])
        if owner in (Tensor.is_cuda, Tensor.is_cpu):
            return device_of(args[0]).type == ("cuda" if owner is Tensor.is_cuda else "cpu")
        if owner is Tensor.data and func.__name__ == "__set__":
            func(*args)
            _label(args[0], device_of(args[1]))
            return None
        if func is torch.device or getattr(func, "__name__", "") == "_parse_to":
            return func(*args, **kwargs)
        return self._run(func, args, kwargs)

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        wanted = _device_in((*args, *kwargs.values()))
        if name == "numpy" and device_of(args[0]) != CPU:
            raise TypeError(f"can't convert {device_of(args[0])} device type tensor to numpy")
        here = _common(name, args, kwargs)
        if name == "cpu":
            wanted = CPU
        elif name == "copy_":
            wanted = device_of(args[0])
        elif name == "to" and wanted is None and len(args) > 1 and isinstance(args[1], Tensor):
            wanted = device_of(args[1])
        moves = wanted is not None and wanted != here and name in {"to", "cpu"}
        if name == "histc" and not args[0].is_floating_point():  # GPUs count integers, the CPU does not
            args = (args[0].float(), *args[1:])
        found = func(*_on_cpu(args), **_on_cpu(kwargs))
        if moves and found is args[0]:
            found = args[0].clone()
        device = here if wanted is None else wanted
        for tensor in _tensors(found):
            _label(tensor, device)
        return found


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch, *, free: Mapping[int, int]) -> Iterator[None]:
    """Inside, there are GPUs; ``free`` has the free bytes of each by its number."""
    make = torch.Tensor._make_subclass

    def labelled(cls: type[Any], data: Tensor, requires_grad: bool = False, **kwargs: Any) -> Tensor:
        made = make(cls, data, requires_grad, **kwargs)
        _label(made, device_of(data))
        return made

    monkeypatch.setattr(torch.Tensor, "_make_subclass", staticmethod(labelled))  # what makes an nn.Parameter
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    for nothing in ("synchronize", "empty_cache", "get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, nothing, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[torch.device(device).index or 0], 1 << 36))
    with PretendedDevices():
        yield


def _label(tensor: Tensor, device: torch.device) -> None:
    if device_of(tensor) != device:
        setattr(tensor, _LABEL, device)


def _named(value: Any) -> torch.device | None:
    if isinstance(value, torch.device):
        return value
    return torch.device(value) if isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda", "meta") else None


def _device_in(values: Any) -> torch.device | None:
    named = next((device for device in map(_named, values) if device is not None), None)
    if named is not None and named.type == "cuda" and named.index is None:
        return torch.device("cuda", 0)
    return named


def _on_cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_on_cpu, value))
    named = _named(value)
    return CPU if named is not None and named.type == "cuda" else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _common(name: str, args: Any, kwargs: Any) -> torch.device:
    """Return the one device of the tensors; numbers on the CPU, and indices there, may be with those of any other."""
    tensors = list(_tensors((args, kwargs)))
    if not tensors:
        return CPU
    if name in _MOVES | _OF_ANY:
        return device_of(tensors[0])
    if name in _INDEXED:
        own = device_of(args[0])
        strangers = [t for t in _tensors(args[1]) if device_of(t) not in (own, CPU)]
        strangers += [t for t in _tensors(args[2:]) if device_of(t) != own and t.dim()]
    else:
        devices = [device_of(tensor) for tensor in tensors if tensor.dim() or device_of(tensor) != CPU]
        own = devices[0] if devices else CPU
        strangers = [t for t in tensors if device_of(t) != own and (t.dim() or device_of(t) != CPU)]
    if strangers:
        raise MixedDevices(f"{name}: {own} and {device_of(strangers[0])} in one operation")
    return own
