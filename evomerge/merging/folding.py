"""Folding the scales of a path into the weights of its layers, so that an ordinary stack of layers computes the same.

In a pre-norm network every reader of the residual stream normalises it first. So multiplying the stream by c_t before
hop t does the same as dividing what each later sub-layer adds to it by the running product C_t = c_1 ... c_t: the last
matrices of attention and MLP, or, where a norm follows them, that norm. What is left is the sign of C_t, which goes
into the norms that read the stream. Only the epsilon of the norms sees a difference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from evomerge.errors import BadRecipe
from evomerge.merging.checkpoint import Checkpoint, text_config
from search_spaces.tensors import in_stack, layer_of

_NORM = re.compile(r"norm|ln_\d|ln_f")
_INSIDE_ATTENTION = ("q_norm", "k_norm", "query_layernorm", "key_layernorm")  # what they read is not the stream


@dataclass(frozen=True)
class Folding:
    """Where an architecture writes the residual stream, and where it reads it.

    Attributes:
        writers: modules of a layer that end what is added to the stream.
        readers: norms of a layer that read the stream.
        last: the norm after the last layer.
        offset: a norm multiplies by offset + weight.
        norms_write: whether the writers are norms.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    last: str
    offset: float = 0.0
    norms_write: bool = False

    def gain(self, name: str, stream_scale: float) -> tuple[float, float]:
        """Return (a, b): tensor ``name`` of a layer where the stream was multiplied by ``stream_scale`` so far
        becomes ``a * tensor + b``."""
        module, _, kind = name.rpartition(".")
        if module.endswith(self.writers):
            gain = 1.0 / stream_scale
            return (gain, self.offset * (gain - 1.0)) if self.norms_write and kind == "weight" else (gain, 0.0)
        if stream_scale < 0.0 and kind == "weight" and module.endswith((*self.readers, self.last)):
            return -1.0, -2.0 * self.offset
        return 1.0, 0.0


_PRE_NORM = ("input_layernorm", "post_attention_layernorm")
_KNOWN = (
    Folding(("self_attn.o_proj", "mlp.down_proj"), _PRE_NORM, ".norm"),
    Folding(("self_attn.o_proj", "mlp.down_proj"), ("input_layernorm",), ".norm"),  # parallel: Cohere
    Folding(("attention.dense", "mlp.dense_4h_to_h"), _PRE_NORM, ".final_layer_norm"),  # GPT-NeoX
    Folding(("attn.c_proj", "mlp.c_proj"), ("ln_1", "ln_2"), ".ln_f"),  # GPT-2
    Folding(  # Gemma 2 and 3
        ("post_attention_layernorm", "post_feedforward_layernorm"),
        ("input_layernorm", "pre_feedforward_layernorm"),
        ".norm",
        norms_write=True,
    ),
    Folding(("post_self_attn_layernorm", "post_mlp_layernorm"), _PRE_NORM, ".norm", norms_write=True),  # GLM-4
)


def folding_of(checkpoint: Checkpoint) -> Folding:
    """Return how scales are folded in the architecture of ``checkpoint``.

    Raises:
        BadRecipe: they cannot be, or nobody has said how.
    """
    kind = str(text_config(checkpoint.config).get("model_type", checkpoint.config.get("model_type")))
    modules = {name.rpartition(".")[0] for name in checkpoint.names if in_stack(name)}
    first = [module for module in modules if layer_of(f"{module}.", checkpoint.layers) == 0]
    norms = [module for module in first if _NORM.search(module) and not module.endswith(_INSIDE_ATTENTION)]
    for known in _KNOWN:
        expected = {*known.readers, *(known.writers if known.norms_write else ())}
        if len(norms) == len(expected) and _has(first, (*expected, *known.writers)):
            offset = 1.0 if kind.startswith("gemma") else 0.0
            return Folding(known.writers, known.readers, known.last, offset, known.norms_write)
    raise BadRecipe(
        f"the scales of a path cannot be folded into the weights of architecture {kind!r}, whose layers have the norms "
        f"{sorted(module.rpartition('.')[2] for module in norms)}: leave the scales out (scales: none)"
    )


def _has(modules: Sequence[str], ends: Sequence[str]) -> bool:
    return all(any(module.endswith(f".{end}") for module in modules) for end in ends)


def folded(tensor: Tensor, gain: tuple[float, float]) -> Tensor:
    """Return ``a * tensor + b`` in float32; ``tensor`` itself for (1, 0)."""
    factor, offset = gain
    if gain == (1.0, 0.0):
        return tensor
    scaled = tensor.float() * factor
    return scaled + offset if offset else scaled
