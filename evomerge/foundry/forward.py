"""The Llama of the foundry as plain functions on a dictionary of parameters.

It computes what `LlamaForCausalLM` computes, from parameters of the same names, at about half the time of a
training step: sequences here are eleven tokens and heads eight numbers, where the general code spends its
time on rows too short for vector instructions. Shapes: b batch, t time, h heads, d head size, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from evomerge.foundry.language import PROMPT_LENGTH, VOCABULARY
from evomerge.foundry.settings import Geometry

Parameters = dict[str, Tensor]


def initial_parameters(geometry: Geometry, generator: torch.Generator) -> Parameters:
    """Float32 parameters of an untrained model, under the names of `LlamaForCausalLM`.

    Matrices are normal with `initial_std`, norm weights are one.
    """
    width, vocabulary = geometry.width, len(VOCABULARY)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(geometry.layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (geometry.mlp, width) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (width, geometry.mlp)
        shapes |= {f"{prefix}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    return {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * geometry.initial_std
        for name, shape in shapes.items()
    }


class Forward:
    """Answer logits of a batch; holds what depends on the geometry and the sequence length only."""

    def __init__(self, geometry: Geometry, length: int) -> None:
        self.geometry = geometry
        head = geometry.width // geometry.heads
        frequencies = geometry.rope_theta ** -(torch.arange(0, head, 2) / head)
        angles = torch.outer(torch.arange(length), frequencies)
        self._rotation_t1d = torch.polar(torch.ones_like(angles), angles)[:, None, :]
        # Hugging Face rotates the pairs (i, i + d/2). Reordering the rows of both projections puts the
        # pairs side by side, which a complex product rotates in one operation; scores do not depend on the
        # order of the rows.
        order = torch.arange(geometry.width).view(geometry.heads, 2, head // 2)
        self._order_w = order.transpose(1, 2).reshape(-1)
        self._causal_tt = torch.ones(length, length).tril()

    def __call__(self, parameters: Parameters, tokens: Tensor) -> Tensor:
        """`(b, TARGET_LENGTH, vocabulary)` float32 logits of the answers in `tokens`, `(b, t)` int64."""
        stream = F.embedding(tokens, parameters["model.embed_tokens.weight"])
        for layer in range(self.geometry.layers):
            prefix = f"model.layers.{layer}."
            normed = self._norm(stream, parameters[f"{prefix}input_layernorm.weight"])
            attended = self._attend(normed, parameters, f"{prefix}self_attn.")
            if layer == self.geometry.layers - 1:
                # Nothing reads the prompt positions after the last attention.
                stream, attended = stream[:, PROMPT_LENGTH - 1 :], attended[:, PROMPT_LENGTH - 1 :]
            stream = stream + F.linear(attended, parameters[f"{prefix}self_attn.o_proj.weight"])
            normed = self._norm(stream, parameters[f"{prefix}post_attention_layernorm.weight"])
            gate = F.silu(F.linear(normed, parameters[f"{prefix}mlp.gate_proj.weight"]))
            up = F.linear(normed, parameters[f"{prefix}mlp.up_proj.weight"])
            stream = stream + F.linear(gate * up, parameters[f"{prefix}mlp.down_proj.weight"])
        return F.linear(self._norm(stream, parameters["model.norm.weight"]), parameters["lm_head.weight"])

    def _norm(self, stream: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(stream, (self.geometry.width,), weight, self.geometry.norm_epsilon)

    def _attend(self, normed: Tensor, parameters: Parameters, prefix: str) -> Tensor:
        """`(b, t, w)` values mixed by causal attention, before the output projection."""
        batch, length, width = normed.shape
        heads = self.geometry.heads
        head = width // heads
        query_ww, key_ww, value_ww = (parameters[f"{prefix}{name}_proj.weight"] for name in "qkv")
        stacked = torch.cat([query_ww[self._order_w] * head**-0.5, key_ww[self._order_w], value_ww])
        mixed = F.linear(normed, stacked)
        pairs = torch.view_as_complex(mixed[..., : 2 * width].reshape(batch, length, 2 * heads, head // 2, 2))
        rotated = torch.view_as_real(pairs * self._rotation_t1d).view(batch, length, 2, heads, head)
        query_bhtd, key_bhtd = rotated.permute(2, 0, 3, 1, 4)
        value_bhtd = mixed[..., 2 * width :].reshape(batch, length, heads, head).transpose(1, 2)
        # exp without subtracting the maximum is safe below 88, far above what these models reach; the
        # column of ones makes one product give both the numerator and the denominator of the softmax.
        weight_bhtt = (query_bhtd @ key_bhtd.transpose(-1, -2)).clamp(max=80.0).exp() * self._causal_tt
        sums = weight_bhtt @ F.pad(value_bhtd, (0, 1), value=1.0)
        mixed_bhtd: Tensor = sums[..., :head] / sums[..., head:]
        return mixed_bhtd.transpose(1, 2).reshape(batch, length, width)
