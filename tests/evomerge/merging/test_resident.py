import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import transformers

from evomerge.errors import BadRecipe, BadSource, NotEnoughRoom
from evomerge.merging import resident
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.export import write_checkpoint
from evomerge.merging.resident import ResidentModel, available_bytes
from search_spaces.operators import Linear, TaskArithmetic, Ties
from search_spaces.recipe import Block, Blocks, Recipe, Source

IDS = torch.arange(3, 23).view(2, 10)
SHAPE = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = SHAPE | {"num_key_value_heads": 2}
ARCHITECTURES = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "llama-tied": transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    "mistral": transformers.MistralConfig(**GROUPED),
    "gpt-neox": transformers.GPTNeoXConfig(**SHAPE),
    "gemma2": transformers.Gemma2Config(**GROUPED, head_dim=8),
    "gemma3": transformers.Gemma3TextConfig(**GROUPED, head_dim=8),
    "gpt2": transformers.GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "phi3": transformers.Phi3Config(**GROUPED),
    "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=8),
    "qwen3-moe": transformers.Qwen3MoeConfig(
        **GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "mixtral": transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
}
MakeFamily = Callable[..., list[Path]]


def recipe_for(folders: list[Path], dtype: str, tokenizer: int = 0) -> Recipe:
    blocks = (
        Block(layers=(0, 1), operator=TaskArithmetic(weights=(0.7,))),
        Block(layers=(0, 99), tensors=("*mlp*",), operator=Ties(weights=(0.5,), densities=(0.4,))),
        Block(layers=(0, 99), operator=Linear(weights=(0.5, 0.25))),
    )
    sources = tuple(Source(path=str(folder)) for folder in folders)
    return Recipe(sources=sources, dtype=dtype, tokenizer=tokenizer, body=Blocks(blocks=blocks))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_resident_export_and_reload_are_one_model(
    name: str, dtype: str, make_family: MakeFamily, tmp_path: Path
) -> None:
    folders = make_family(ARCHITECTURES[name], experts=1, dtype=getattr(torch, dtype))
    checkpoints = [Checkpoint.open(folder) for folder in folders]
    model = ResidentModel(checkpoints, dtype=dtype)
    recipe = recipe_for(folders, dtype)
    model.apply(recipe)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(
        write_checkpoint(recipe, tmp_path / "merged"), dtype="auto"
    )
    assert reloaded.dtype is getattr(torch, dtype)
    exported = Checkpoint.open(tmp_path / "merged")
    assert set(exported.names) == set(model.tensors)
    for tensor_name in exported.names:
        assert torch.equal(exported.tensor(tensor_name), model.tensors[tensor_name])
    live, kept = model.model.state_dict(), reloaded.state_dict()
    assert live.keys() == kept.keys()
    assert all(torch.equal(live[key], kept[key]) for key in live)
    with torch.no_grad():
        assert torch.equal(model.model(IDS).logits, reloaded(IDS).logits)
    assert {n: b.dtype for n, b in model.model.named_buffers()} == {n: b.dtype for n, b in reloaded.named_buffers()}


def test_the_model_is_ordinary_frozen_and_on_one_buffer(checkpoints: list[Checkpoint]) -> None:
    model = ResidentModel(checkpoints, dtype="bfloat16")
    assert isinstance(model.model, transformers.LlamaForCausalLM)
    assert not model.model.training
    parameters = list(model.model.parameters())
    assert not any(parameter.requires_grad for parameter in parameters)
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    total = sum(parameter.nbytes for parameter in parameters)
    assert parameters[0].untyped_storage().nbytes() == total
    assert model.model.model.rotary_emb.inv_freq.dtype is torch.float32
    assert model.model.generation_config.eos_token_id == 2


def test_apply_changes_the_model_in_place(checkpoints: list[Checkpoint], recipe_of: Callable[..., Recipe]) -> None:
    model = ResidentModel(checkpoints, dtype="float32")
    addresses = [parameter.data_ptr() for parameter in model.model.parameters()]
    seen = []
    for weight in (0.0, 1.0, 0.0):
        model.apply(recipe_of(TaskArithmetic(weights=(weight, 0, 0))))
        with torch.no_grad():
            seen.append(model.model(IDS).logits)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert addresses == [parameter.data_ptr() for parameter in model.model.parameters()]
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoints[0].path)
    with torch.no_grad():
        assert torch.equal(seen[0], base(IDS).logits)


def test_ties_stay_tied(make_family: MakeFamily) -> None:
    folders = make_family(ARCHITECTURES["llama-tied"], experts=1)
    model = ResidentModel([Checkpoint.open(folder) for folder in folders], dtype="float32")
    assert model.model.lm_head.weight.data_ptr() == model.model.model.embed_tokens.weight.data_ptr()


def test_another_dtype_is_refused(checkpoints: list[Checkpoint], recipe_of: Callable[..., Recipe]) -> None:
    model = ResidentModel(checkpoints, dtype="float32")
    with pytest.raises(BadRecipe, match=r"bfloat16.*float32"):
        model.apply(recipe_of(TaskArithmetic(weights=(0, 0, 0)), dtype="bfloat16"))


def test_names_that_are_not_those_of_the_model(make_family: MakeFamily, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (folder,) = make_family(ARCHITECTURES["gpt2"], experts=0)
    file = folder / "model.safetensors"
    save_file({n.replace("attn.c_attn", "attn.other"): t for n, t in load_file(file).items()}, file)
    with pytest.raises(BadSource, match=r"c_attn.*other.*save_pretrained"):
        ResidentModel([Checkpoint.open(folder)], dtype="float32")


@pytest.mark.parametrize(("kind", "match"), [("bert", "no causal|do not match|cannot build"), ("nonsense", "cannot")])
def test_architectures_that_transformers_does_not_have(
    family: list[Path], tmp_path: Path, kind: str, match: str
) -> None:
    config = json.loads((family[0] / "config.json").read_text()) | {"model_type": kind}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(family[0] / "model.safetensors")
    with pytest.raises(BadSource, match=match):
        ResidentModel([Checkpoint.open(tmp_path)], dtype="float32")


def test_too_little_memory_is_said_before_it_is_taken(
    checkpoints: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "available_bytes", lambda: 1 << 20)
    with pytest.raises(NotEnoughRoom, match=r"needs 0\.\d\d GiB on cpu, and 0\.00 GiB are available"):
        ResidentModel(checkpoints, dtype="float32")


def test_control_group_limits_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resident, "_GROUPS", tmp_path)
    free = available_bytes()
    assert free > 0
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    assert available_bytes() == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert abs(available_bytes() - free) < psutil.virtual_memory().total / 2


MEASURE = """
import sys, psutil, torch, transformers
from pathlib import Path
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.resident import ResidentModel
from search_spaces.recipe import Recipe
recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
uss = lambda: psutil.Process().memory_full_info().uss
checkpoints = [Checkpoint.open(Path(source.path)) for source in recipe.sources]
transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM
before = uss()
for checkpoint in checkpoints:
    for name in checkpoint.names:
        checkpoint.tensor(name).view(-1)[:: 1024].float().sum()
mapped = uss() - before
model = ResidentModel(checkpoints, dtype=recipe.dtype)
peak = 0
for _ in range(2):
    model.apply(recipe)
    peak = max(peak, uss())
copy = sum(parameter.nbytes for parameter in model.model.parameters())
sys.stdout.write(f"{mapped} {peak - before} {copy}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_private_memory_is_one_copy_and_a_little(make_family: MakeFamily, tmp_path: Path, dtype: str) -> None:
    """About 100 million parameters, base and two experts; other processes map the same files, as workers do."""
    config = transformers.LlamaConfig(
        **GROUPED | {"vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2560, "num_hidden_layers": 12}
    )
    folders = make_family(config, experts=2, dtype=torch.bfloat16)
    sources = tuple(Source(path=str(folder)) for folder in folders)
    operator = Ties(weights=(0.5, 0.4), densities=(0.3, 0.2))
    blocks = (
        Block(layers=(0, 6), operator=operator),
        Block(layers=(6, 12), operator=TaskArithmetic(weights=(0.5, 0.3))),
    )
    recipe = Recipe(sources=sources, dtype=dtype, body=Blocks(blocks=blocks))
    file = tmp_path / "recipe.json"
    file.write_text(recipe.to_json())
    held = [Checkpoint.open(folder) for folder in folders]
    for checkpoint in held:
        for name in checkpoint.names:
            checkpoint.tensor(name).view(-1)[::1024].float().sum()  # so that the pages are shared
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    mapped, taken, copy = map(int, done.stdout.split())
    assert copy > 90e6 * (2 if dtype == "bfloat16" else 4)
    assert mapped < 32 << 20, "mapping and reading the sources takes no private memory"
    assert copy * 0.9 < taken < copy + (256 << 20)
