"""Second moments of the residual stream: how large it is where each layer of a model reads it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import BadSource
from evomerge.merging.assembly import layers_of


def stream_moments(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Return the root mean square of the stream that enters each layer of the live ``model``, and that leaves the last.

    The mean over the width is arithmetic, that over the tokens of all ``prompts`` geometric: a few tokens have
    activations a thousand times larger than all others (Sun et al. 2024, Massive Activations in Large Language Models),
    and would decide every other mean.

    Raises:
        BadSource: the stream is zero, infinite or not a number.
    """
    layers = layers_of(model)
    logs = torch.zeros(len(layers) + 1, dtype=torch.float64)

    def add(number: int, stream: Tensor) -> None:
        logs[number] += stream.double().square().mean(-1).log().sum().cpu() / 2

    with ExitStack() as stack, torch.inference_mode():
        for number, layer in enumerate(layers):
            hook = layer.register_forward_pre_hook(
                lambda _, inputs, named, number=number: add(number, inputs[0] if inputs else named["hidden_states"]),
                with_kwargs=True,
            )
            stack.callback(hook.remove)
        last = layers[-1].register_forward_hook(
            lambda _, inputs, output: add(len(layers), output if isinstance(output, Tensor) else output[0])
        )
        stack.callback(last.remove)
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False)
    moments = (logs / sum(map(len, prompts))).exp()
    if not (moments.isfinite() & (moments > 0)).all():
        raise BadSource("the activations of a model are zero or not finite, so scales cannot start from them")
    return tuple(float(f"{moment:.6g}") for moment in moments.tolist())
