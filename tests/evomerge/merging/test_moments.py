"""Second moments of the residual stream, against the hidden states that transformers returns."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from evomerge.errors import BadSource
from evomerge.merging.moments import stream_moments

SHAPE = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": transformers.LlamaConfig(**SHAPE),
    "gpt-neox": transformers.GPTNeoXConfig(**SHAPE),
    "gemma2": transformers.Gemma2Config(**SHAPE | {"num_key_value_heads": 2, "head_dim": 8}),
}
PROMPTS = [(3, 4, 5, 6, 7, 8, 9), (10, 11), (12, 13, 14)]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_enters_each_layer_and_leaves_the_last(name: str, make_family: Callable[..., list[Path]]) -> None:
    (folder,) = make_family(FAMILIES[name], experts=0, noise=0.05)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    found = stream_moments(model, PROMPTS)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    norm = {"gpt-neox": "gpt_neox.final_layer_norm"}.get(name, "model.norm")
    model.set_submodule(norm, nn.Identity())  # hidden_states ends with what it returns
    logs = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for prompt in PROMPTS:
            states = model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
            logs += torch.stack([state.double().square().mean(-1).sqrt().log().sum() for state in states])
    assert found == pytest.approx((logs / 12).exp().tolist(), rel=1e-5)


def test_streams_that_are_no_numbers(make_family: Callable[..., list[Path]]) -> None:
    (folder,) = make_family(FAMILIES["llama"], experts=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model.requires_grad_(False)
    model.model.layers[1].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(BadSource, match="zero or not finite"):
        stream_moments(model, PROMPTS)
