"""An ordinary transformers model made of layers of other models, by reference: no weight is copied.

Every hop has modules of its own, which share parameters with the layer that it visits, and its own `layer_idx`, so
that a layer that is visited twice keeps two sets of keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from evomerge.errors import BadRecipe


class Visit(NamedTuple):
    """One hop: a layer of a live model, and what the residual stream is multiplied by before it."""

    model: Any
    layer: int
    scale: float


def assemble(frame: Any, visits: Sequence[Visit]) -> Any:
    """Return the model that runs ``visits`` between the embeddings and the final norm of ``frame``.

    All models are of one architecture. The result lives as long as they do and sees every change of their weights.

    Raises:
        BadRecipe: a layer does not exist.
    """
    model = shadow(frame)
    hops = [_hop(visit, number) for number, visit in enumerate(visits)]
    place, stack = _stack_of(frame)
    body = model.get_submodule(place)
    setattr(body, stack, nn.ModuleList(hops))
    config = copy.deepcopy(frame.config)
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers = len(hops)
    if (types := layer_types_of(visits)) is not None:
        text.layer_types = types
        if hasattr(body, "has_sliding_layers"):
            body.has_sliding_layers = "sliding_attention" in types
    for module in {model, body}:
        module.config = config if module is model else text
    return model


def layer_types_of(visits: Sequence[Visit]) -> list[str] | None:
    """Return the kind of attention of every hop; None for architectures of one kind."""
    found = []
    for visit in visits:
        types = getattr(visit.model.config.get_text_config(decoder=True), "layer_types", None)
        if types is None:
            return None
        found.append(types[visit.layer])
    return found


def shadow(module: nn.Module) -> Any:
    """Return a module like ``module`` with the same parameters and buffers, and submodules of its own."""
    twin = module.__new__(type(module))
    twin.__dict__ = module.__dict__.copy()
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    for name in ("_parameters", "_buffers", *hooks):
        twin.__dict__[name] = module.__dict__[name].copy()
    twin.__dict__["_modules"] = {
        name: None if inner is None else shadow(inner) for name, inner in module.__dict__["_modules"].items()
    }
    return twin


def _hop(visit: Visit, number: int) -> nn.Module:
    layers = layers_of(visit.model)
    if not 0 <= visit.layer < len(layers):
        raise BadRecipe(f"hop {number} visits layer {visit.layer}, but the model has layers 0 to {len(layers) - 1}")
    hop: nn.Module = shadow(layers[visit.layer])
    for module in hop.modules():
        if "layer_idx" in module.__dict__:
            module.__dict__["layer_idx"] = number
    if visit.scale != 1.0:
        hop.register_forward_pre_hook(_scaling(visit.scale), with_kwargs=True)
    return hop


def layers_of(model: Any) -> nn.ModuleList:
    """Return the stack of layers of a live model.

    Raises:
        BadRecipe: there is none that is known.
    """
    place, stack = _stack_of(model)
    layers: nn.ModuleList = getattr(model.get_submodule(place), stack)
    return layers


def _scaling(scale: float) -> Callable[..., Any]:
    def scaled(_: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any]) -> Any:
        if inputs:
            return (inputs[0] * scale, *inputs[1:]), keywords
        return inputs, keywords | {"hidden_states": keywords["hidden_states"] * scale}

    return scaled


def _stack_of(model: Any) -> tuple[str, str]:
    """Return the module that holds the stack of layers, and the stack's name in it."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for place, module in model.named_modules():
        for name, inner in module.named_children():
            if isinstance(inner, nn.ModuleList) and len(inner) == count and name in ("layers", "h", "blocks"):
                return place, name
    raise BadRecipe(f"{type(model).__name__}: no stack of {count} layers was found, so no path can lead through it")
