"""On a machine with two GPUs: a model spread over both computes what it computes on one. `pytest -m gpu`"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.resident import ResidentModel
from search_spaces.operators import Ties
from search_spaces.recipe import Block, Blocks, Hop, PathBody, Recipe, Source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
IDS = torch.arange(3, 43).view(2, 20)
MERGE = Blocks(blocks=(Block(layers=(0, 99), operator=Ties(weights=(0.8,), densities=(0.5,))),))
PATH = PathBody(slots=(0, 1), hops=tuple(Hop(slot=s, layer=layer) for s, layer in ((0, 0), (1, 3), (0, 1), (1, 2))))


@pytest.mark.parametrize("body", [MERGE, PATH])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_spread_model_is_the_model_on_one(body: Any, dtype: str, make_family: Callable[..., list[Path]]) -> None:
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folders = make_family(config, experts=1, noise=0.05, dtype=getattr(torch, dtype))
    recipe = Recipe(sources=tuple(Source(path=str(folder)) for folder in folders), dtype=dtype, body=body)
    found = []
    for device in ("cuda:0", ("cuda:0", "cuda:1")):
        model = ResidentModel([Checkpoint.open(f) for f in folders], dtype=dtype, device=device).apply(recipe)
        assert len({parameter.device for parameter in model.parameters()}) == (1 if isinstance(device, str) else 2)
        with torch.inference_mode():
            logits = model(input_ids=IDS.to(model.device)).logits.cpu()
            answers = model.generate(IDS.to(model.device), max_new_tokens=8, do_sample=False, eos_token_id=None).cpu()
        found.append((logits, answers))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
