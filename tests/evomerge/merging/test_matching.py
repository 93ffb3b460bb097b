"""Weight matching: a model in another order is found back exactly, and order changes no function."""

import hashlib
import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.align import align
from evomerge.errors import BadSource, UserMistake
from evomerge.export import merge_file
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.matching import LayerOrder, Matching, best_assignment, match, write_aligned
from evomerge.merging.preparations import ALIGNMENT
from evomerge.merging.sources import fingerprint
from search_spaces.recipe import Recipe

LAYERS, HEADS, GROUPS, UNITS = 2, 6, 3, 24


def config(kind: str) -> transformers.PretrainedConfig:
    sizes = {
        "vocab_size": 48, "hidden_size": 24, "intermediate_size": UNITS, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": 4, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if kind in ("qwen2", "olmo2"):
        return transformers.AutoConfig.for_model(kind, **{k: v for k, v in sizes.items() if k != "head_dim"})
    classes = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}
    return classes[kind](**sizes, **({"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}))


def shuffled(seed: int) -> tuple[LayerOrder, ...]:
    random = np.random.default_rng(seed)
    size, found = HEADS // GROUPS, []
    for _ in range(LAYERS):
        groups = random.permutation(GROUPS)
        heads = chain.from_iterable(g * size + random.permutation(size) for g in groups)
        units = random.permutation(UNITS)
        found.append(LayerOrder(tuple(units.tolist()), tuple(int(h) for h in heads), tuple(groups.tolist())))
    return tuple(found)


def logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor([[5, 9, 3, 17, 40]])).logits


def equal(one: Path, two: Path) -> bool:
    first, second = Checkpoint.open(one), Checkpoint.open(two)
    return all(torch.equal(first.tensor(name), second.tensor(name)) for name in first.names)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_permuted_copy_has_the_same_function_and_is_brought_back_exactly(
    make_family: Callable[..., list[Path]], kind: str, tmp_path: Path
) -> None:
    (folder,) = make_family(config(kind), experts=0)
    model = Checkpoint.open(folder)
    write_aligned(model, Matching("", "", shuffled(3)), tmp_path / "permuted")
    assert not equal(folder, tmp_path / "permuted")
    torch.testing.assert_close(logits(tmp_path / "permuted"), logits(folder), rtol=1e-4, atol=1e-5)
    permuted = Checkpoint.open(tmp_path / "permuted")
    matching = match(permuted, model)
    assert align(str(permuted.path), str(folder), tmp_path / "back") == [
        f"{matching.moved} of {LAYERS * (UNITS + HEADS + GROUPS)} units and heads moved"
    ]
    assert equal(folder, tmp_path / "back")
    assert matching.moved > 20
    record = json.loads((tmp_path / "back" / ALIGNMENT).read_text())
    assert (record["model"], record["reference"]) == (fingerprint(permuted.path), fingerprint(folder))
    assert match(model, model).moved == 0


def test_noise_does_not_hide_the_order(make_family: Callable[..., list[Path]], tmp_path: Path) -> None:
    base, expert = make_family(config("llama"), experts=1, noise=0.01)
    write_aligned(Checkpoint.open(expert), Matching("", "", shuffled(8)), tmp_path / "permuted")
    permuted = Checkpoint.open(tmp_path / "permuted")
    told: list[tuple[int, int]] = []
    matching = match(permuted, Checkpoint.open(base), progress=lambda done, count: told.append((done, count)))
    write_aligned(permuted, matching, tmp_path / "back")
    assert equal(expert, tmp_path / "back")
    assert told == [(1, LAYERS), (2, LAYERS)]


def test_recipes_refer_to_the_record_of_an_alignment(make_family: Callable[..., list[Path]], tmp_path: Path) -> None:
    base, expert = make_family(config("llama"), experts=1)
    align(str(expert), str(base), tmp_path / "aligned")
    record = tmp_path / "aligned" / ALIGNMENT
    digest = hashlib.sha256(record.read_bytes()).hexdigest()
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({
            "merge_method": "linear", "dtype": "float32",
            "models": [{"model": str(m), "parameters": {"weight": 0.5}} for m in (base, tmp_path / "aligned")],
        })
    )  # fmt: skip
    merge_file(tmp_path / "config.yaml", tmp_path / "merged")
    recipe = Recipe.model_validate_json((tmp_path / "merged" / "recipe.json").read_text())
    assert [source.preparation for source in recipe.sources] == [None, digest]
    copy = tmp_path / "merged" / f"preparation-{digest[:16]}.json"
    assert copy.read_bytes() == record.read_bytes()
    assert copy.name in (tmp_path / "merged" / "README.md").read_text()
    plain = recipe.sources[1].model_copy(update={"preparation": None})
    assert recipe.model_copy(update={"sources": (recipe.sources[0], plain)}).digest == recipe.digest
    record.write_text("{}")
    with pytest.raises(BadSource, match="the record of its preparation .* is gone or another"):
        merge_file(tmp_path / "merged" / "recipe.json", tmp_path / "again")


def test_every_tensor_keeps_its_dtype(make_family: Callable[..., list[Path]], tmp_path: Path) -> None:
    (folder,) = make_family(config("llama"), experts=0, dtype=torch.bfloat16)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in tensors.items()}
    mixed["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].half()
    shutil.copytree(folder, tmp_path / "mixed")
    safetensors.torch.save_file(mixed, tmp_path / "mixed" / "model.safetensors", metadata={"format": "pt"})
    write_aligned(Checkpoint.open(tmp_path / "mixed"), Matching("", "", shuffled(1)), tmp_path / "aligned")
    aligned = Checkpoint.open(tmp_path / "aligned")
    assert {name: aligned.info(name).dtype for name in aligned.names} == {n: t.dtype for n, t in mixed.items()}
    for name in ("model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(aligned.tensor(name), mixed[name])


@given(size=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_assignment_is_thebest_assignment_of_all(size: int, seed: int) -> None:
    from itertools import permutations

    table = np.random.default_rng(seed).normal(size=(size, size))
    best = max(sum(table[i, order[i]] for i in range(size)) for order in permutations(range(size)))
    assert table[np.arange(size), best_assignment(table)].sum() == pytest.approx(best)


def test_what_cannot_be_matched_is_refused(make_family: Callable[..., list[Path]], tmp_path: Path) -> None:
    gpt2 = transformers.GPT2Config(
        vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    (folder,) = make_family(gpt2, experts=0)
    with pytest.raises(BadSource, match="not built like Llama's"):
        match(Checkpoint.open(folder), Checkpoint.open(folder))
    (olmo,) = make_family(config("olmo2"), experts=0)  # its norms of queries and keys span all heads
    with pytest.raises(BadSource, match="q_norm.weight' is not known|k_norm.weight' is not known"):
        match(Checkpoint.open(olmo), Checkpoint.open(olmo))
    (llama,) = make_family(config("llama"), experts=0)
    with pytest.raises(UserMistake, match="exists already"):
        write_aligned(Checkpoint.open(llama), Matching("", "", shuffled(0)), llama)
