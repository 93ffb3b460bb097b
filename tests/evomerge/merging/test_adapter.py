"""LoRA adapters as experts, against PEFT itself: what it merges, what it loads, what must be refused."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from evomerge.errors import BadRecipe, BadSource, UserMistake
from evomerge.merging.adapter import Adapter
from evomerge.merging.adapter_export import write_adapter
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.engine import MergeEngine
from evomerge.merging.export import write_checkpoint
from evomerge.merging.inspection import inspect
from evomerge.merging.mergekit_config import from_mergekit, to_mergekit
from evomerge.merging.opening import open_sources
from evomerge.merging.resident import ResidentModel
from evomerge.merging.sources import pin
from search_spaces.operators import ModelStock, TaskArithmetic, Ties
from search_spaces.recipe import Block, Blocks, Recipe, Source

LINEAR = ["q_proj", "v_proj", "down_proj"]
Make = Callable[..., Path]


@pytest.fixture
def adapter(family: list[Path], tmp_path: Path) -> Make:
    """Return a maker of adapters of the family's base (or of another model) with random factors."""

    def make(name: str, base: Path | None = None, **settings: Any) -> Path:
        folder = base or family[0]
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        config = peft.LoraConfig(**({"r": 3, "lora_alpha": 6, "target_modules": LINEAR} | settings))
        with torch.random.fork_rng():
            torch.manual_seed(sum(map(ord, name)))
            adapted = peft.get_peft_model(model, config)
            for key, parameter in adapted.named_parameters():
                if "lora_" in key:
                    parameter.data.normal_(0.0, 0.02)
                elif parameter.requires_grad:
                    parameter.data.mul_(1.01)
        adapted.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    return dict(peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict())


def recipe_of(base: Path, experts: list[Path], operator: Any, **changes: Any) -> Recipe:
    sources = tuple(Source(path=str(folder)) for folder in (base, *experts))
    body = Blocks(blocks=(Block(layers=(0, 4), operator=operator),))
    return Recipe(**({"sources": sources, "dtype": "float32", "body": body} | changes))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 20, "down_proj": 1}},
        {"target_modules": ["embed_tokens", "o_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [1, 2]},
    ],
    ids=["plain", "rank-stabilised", "patterns", "embedding", "saved-head", "some-layers"],
)
def test_stands_for_what_peft_merges(family: list[Path], adapter: Make, settings: dict[str, Any]) -> None:
    folder = adapter("one", **settings)
    base, expert = open_sources([family[0], folder], 0)
    expected = merged_by_peft(family[0], folder)
    moved = 0
    for name in mergeable_names(base):
        torch.testing.assert_close(expert.tensor(name).float(), expected[name], rtol=0, atol=1e-7)
        moved += not torch.equal(expert.tensor(name), base.tensor(name))
    assert moved > 0


def test_transposed_matrices(tmp_path: Path, adapter: Make) -> None:
    config = transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    folder = adapter("one", tmp_path / "gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    expected = merged_by_peft(tmp_path / "gpt2", folder)
    base, expert = open_sources([tmp_path / "gpt2", folder], 0)
    for name in mergeable_names(base):
        own = name if name in expected else f"transformer.{name}"
        torch.testing.assert_close(expert.tensor(name), expected[own], rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_merge_adapters_as_they_merge_models(
    make_family: Callable[..., list[Path]], adapter: Make, tmp_path: Path, dtype: torch.dtype
) -> None:
    (base,) = make_family(experts=0, dtype=dtype)
    adapters = [adapter("one"), adapter("two", r=4)]
    for operator in (Ties(weights=(0.7, 0.5), densities=(0.4, 0.6)), TaskArithmetic(weights=(0.9, -0.3))):
        streamed, kept = (open_sources([base, *adapters], 0, keep=keep) for keep in (False, True))
        recipe = recipe_of(base, adapters, operator)
        names = mergeable_names(streamed[0])
        engine = MergeEngine(streamed, names=names)
        found = {name: engine.merge_tensor(recipe, name) for name in names}
        resident = ResidentModel(kept, dtype="float32")
        resident.apply(recipe)
        assert all(torch.equal(found[name], resident.tensors[name]) for name in names)
        if isinstance(operator, TaskArithmetic):
            for name in names:
                start = streamed[0].tensor(name).double()
                deltas = [f.delta().double() if (f := a.factors(name)) else 0.0 for a in streamed[1:]]
                expected = start + sum(w * d for w, d in zip(operator.weights, deltas, strict=True))
                torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=2e-8)


def test_what_was_made_is_mapped_by_others(
    family: list[Path], adapter: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    folder = adapter("one")
    name = "model.layers.1.self_attn.q_proj.weight"
    (expert,) = open_sources([family[0], folder], 0, keep=True)[1:]
    assert expert.mapped
    before = expert.tensor(name).clone()
    (file,) = (tmp_path / "cache" / "adapters").rglob("*.safetensors")
    again = open_sources([family[0], folder], 0, keep=True)[1]
    assert torch.equal(again.tensor(name), before)
    assert again.tensor("model.norm.weight").data_ptr() == again.base.tensor("model.norm.weight").data_ptr()
    assert file.name == f"{name}.safetensors"


def test_the_look_at_experts_sees_what_an_adapter_changes(family: list[Path], adapter: Make) -> None:
    found = inspect(open_sources([family[0], adapter("one")], 0), ["one"])
    assert found.part(0, 0).relative > 0 and found.part(0, 2).relative == 0.0


def test_exported_adapters_are_the_merge(family: list[Path], adapter: Make, tmp_path: Path) -> None:
    adapters = [adapter("one"), adapter("two", r=5, use_rslora=True, target_modules=["q_proj", "up_proj"])]
    for operator in (TaskArithmetic(weights=(0.8, -0.5), scale=1.1), ModelStock()):
        recipe = recipe_of(family[0], adapters, operator)
        recipe = recipe.model_copy(update={"sources": tuple(map(pin, recipe.sources))})
        to = tmp_path / operator.kind
        assert write_adapter(recipe, to / "adapter") == 0.0
        write_checkpoint(recipe, to / "model")
        expected, found = load_file(to / "model" / "model.safetensors"), merged_by_peft(family[0], to / "adapter")
        assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-7) for name in expected)
        assert Recipe.model_validate_json((to / "adapter" / "recipe.json").read_text()) == recipe


def test_a_smaller_rank_is_the_nearest_and_says_what_it_leaves_out(
    family: list[Path], adapter: Make, tmp_path: Path
) -> None:
    recipe = recipe_of(family[0], [adapter("one"), adapter("two")], TaskArithmetic(weights=(0.8, 0.5)))
    lost = write_adapter(recipe, tmp_path / "small", rank=2)
    base, found = load_file(family[0] / "model.safetensors"), merged_by_peft(family[0], tmp_path / "small")
    write_checkpoint(recipe, tmp_path / "model")
    expected = load_file(tmp_path / "model" / "model.safetensors")
    gone = whole = 0.0
    for name in base:
        delta = expected[name].double() - base[name].double()
        if not delta.any():
            continue
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        near = (u[:, :2] * s[:2]) @ v[:2]
        torch.testing.assert_close(found[name].double() - base[name].double(), near, rtol=0, atol=1e-7)
        gone, whole = gone + float(s[2:].square().sum()), whole + float(s.square().sum())
    assert lost == pytest.approx(math.sqrt(gone / whole), rel=1e-3)
    assert 0.1 < lost < 1.0
    assert write_adapter(recipe, tmp_path / "large", rank=100) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "adapter of kind IA3"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"trainable_token_indices": [1]}, "trained token embeddings"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
    ],
)
def test_adapters_that_are_no_sums_are_refused_by_name(
    family: list[Path], adapter: Make, change: dict[str, Any], message: str
) -> None:
    folder = adapter("one")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(BadSource, match=message):
        open_sources([family[0], folder], 0)


def test_another_base_is_refused(family: list[Path], adapter: Make, make_family: Callable[..., list[Path]]) -> None:
    (narrow,) = make_family(transformers.LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    ), experts=0)  # fmt: skip
    folder = adapter("one")
    with pytest.raises(BadSource, match="adapter for"):
        open_sources([family[1], folder], 0)  # its contents are known to differ
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/elsewhere"}))
    open_sources([family[0], folder], 0)
    with pytest.raises(BadSource, match=r"has shape \[32, 64\], in .* it is \[32, 48\].*another base"):
        open_sources([narrow, folder], 0)
    (shallow,) = make_family(transformers.LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    ), experts=0)  # fmt: skip
    with pytest.raises(BadSource, match=r"has no tensor 'model.layers.[23].*another base"):
        open_sources([shallow, folder], 0)


def test_files_that_cannot_be_used(family: list[Path], adapter: Make, tmp_path: Path) -> None:
    folder = adapter("one")
    weights = load_file(folder / "adapter_model.safetensors")
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    first = next(iter(weights))
    save_file({k: t for k, t in weights.items() if k != first}, broken / "adapter_model.safetensors")
    with pytest.raises(BadSource, match="only one of lora_A and lora_B"):
        open_sources([family[0], broken], 0)
    save_file(weights | {first: weights[first] * float("nan")}, broken / "adapter_model.safetensors")
    with pytest.raises(BadSource, match="NaN or infinite"):
        open_sources([family[0], broken], 0)
    (broken / "adapter_model.safetensors").rename(broken / "adapter_model.bin")
    with pytest.raises(BadSource, match="pickle"):
        open_sources([family[0], broken], 0)


def test_where_an_adapter_cannot_stand(family: list[Path], adapter: Make, tmp_path: Path) -> None:
    folder = adapter("one")
    for folders, base in (([folder], 0), ([family[0], folder], None), ([folder, family[0]], 0)):
        with pytest.raises(BadRecipe, match="one is an adapter: it needs its base model beside it"):
            open_sources(folders, base)
    with pytest.raises(BadSource, match="can be an expert beside its base"):
        Checkpoint.open(folder)
    with pytest.raises(BadRecipe, match="tokenizer"):
        write_checkpoint(recipe_of(family[0], [folder], TaskArithmetic(weights=(1.0,)), tokenizer=1), tmp_path / "x")
    assert isinstance(open_sources([family[0], folder], 0)[1], Adapter)


@pytest.mark.parametrize("reason", ["not linear", "no adapter", "nothing", "saved head"])
def test_merges_that_are_no_adapter(family: list[Path], adapter: Make, tmp_path: Path, reason: str) -> None:
    experts = [adapter("one", modules_to_save=["lm_head"] if reason == "saved head" else None), adapter("two")]
    operator: Any = TaskArithmetic(weights=(0.0, 0.0) if reason == "nothing" else (1.0, 0.5))
    if reason == "not linear":
        operator = Ties(weights=(1.0, 0.5), densities=(0.4, 0.6))
    if reason == "no adapter":
        experts[1] = family[1]
    message = {"not linear": "sums of task vectors", "no adapter": "is no adapter", "nothing": "is the base itself"}
    with pytest.raises((BadRecipe, BadSource), match=message.get(reason, "cannot be written as an adapter")):
        write_adapter(recipe_of(family[0], experts, operator), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_refused_before_the_work(family: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    recipe = recipe_of(family[0], [tmp_path / "not-there"], TaskArithmetic(weights=(1.0,)))
    with pytest.raises(UserMistake, match="exists already"):
        write_adapter(recipe, tmp_path)


def test_mergekit_configs_name_adapters_after_their_base(family: list[Path], adapter: Make) -> None:
    adapters = [adapter("one"), adapter("two", r=4)]
    recipe = recipe_of(family[0], adapters, TaskArithmetic(weights=(0.9, -0.3)))
    text = to_mergekit(recipe)
    assert yaml.safe_load(text)["models"][1]["model"] == {
        "model": {"path": str(family[0])}, "lora": {"path": str(adapters[0])}
    }  # fmt: skip
    again = from_mergekit(text)
    assert (again.sources, again.base) == (recipe.sources, 0)
    assert again.body.blocks[0].operator == recipe.body.blocks[0].operator
    short = f"merge_method: ties\nbase_model: {family[0]}\nmodels: [{{model: {family[0]}+{adapters[0]}, parameters: "
    assert from_mergekit(short + "{weight: 1}}]").sources == recipe.sources[:2]
