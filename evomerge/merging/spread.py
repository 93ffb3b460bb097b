"""A model whose layers lie on several devices: every module's inputs are brought to its weights.

Hooks of the modules do it, not wrapped `forward` methods as accelerate's: layers of paths share the hooks of those that
they visit (`assembly`), so a hop runs where its layer lies, wherever the stream comes from. Keys and values need
nothing: a layer's cache begins where the layer makes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from evomerge.merging.assembly import layers_of


def follow_the_weights(model: Any) -> None:
    """Make ``model`` run where its weights are; its inputs and outputs are on the device of its embeddings.

    Each layer lies on one device, all that is in no layer with the embeddings. Buffers are moved there, too.
    """
    first = model.get_input_embeddings().weight.device
    layers = {layer: next(layer.parameters()).device for layer in layers_of(model)}
    homes = {module: home for layer, home in layers.items() for module in layer.modules()}
    bringing = {device: _Bringing(device) for device in (first, *layers.values())}
    for module in model.modules():
        home = homes.get(module, first)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(home))
        outside = module not in homes and next(module.parameters(recurse=False), None) is not None
        if module in layers or outside:
            module.register_forward_pre_hook(bringing[home], with_kwargs=True)


class _Bringing:
    """A hook for modules on ``device``. Copies are kept as long as what they are copies of: masks and rotary
    embeddings enter every layer and come over once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = WeakTensorKeyDictionary()

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        return self._brought(inputs), {name: self._brought(value) for name, value in keywords.items()}

    def _brought(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.device == self._device:
                return value
            if value not in self._copies:
                self._copies[value] = value.to(self._device)
            return self._copies[value]
        return tuple(map(self._brought, value)) if type(value) is tuple else value
