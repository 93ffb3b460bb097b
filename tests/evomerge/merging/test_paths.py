"""Paths: by reference, folded, written; against slow references and stock transformers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.config import SearchFile
from evomerge.errors import BadRecipe, BadSearch, BadSource
from evomerge.merging.assembly import Visit, assemble
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.export import write_checkpoint
from evomerge.merging.folding import folding_of
from evomerge.merging.mergekit_config import from_mergekit, to_mergekit
from evomerge.merging.path_export import apart
from evomerge.merging.resident import ResidentModel
from evomerge.path_spaces import copies, make_path_space
from search_spaces.operators import TaskArithmetic
from search_spaces.path_space import PathSpace
from search_spaces.recipe import Block, Blocks, Hop, PathBody, Recipe, Source, alone

LAYERS = 4
SHAPE = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "rms_norm_eps": 1e-10, "layer_norm_eps": 1e-10,  # these families have tiny streams, where an epsilon counts
}  # fmt: skip
GROUPED = SHAPE | {"num_key_value_heads": 2, "head_dim": 8}
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5}
ARCHITECTURES = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "llama-tied": transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2-sliding": transformers.Qwen2Config(**GROUPED, **MIXED, use_sliding_window=True),
    "qwen3": transformers.Qwen3Config(**GROUPED),
    "mistral-sliding": transformers.MistralConfig(**GROUPED, sliding_window=5),
    "gpt-neox": transformers.GPTNeoXConfig(**SHAPE),
    "gemma2": transformers.Gemma2Config(**GROUPED, **MIXED),
    "gemma3": transformers.Gemma3TextConfig(**GROUPED, **MIXED),
    "gpt2": transformers.GPT2Config(
        vocab_size=48, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64, layer_norm_epsilon=1e-10
    ),
    "phi3": transformers.Phi3Config(**SHAPE, num_key_value_heads=2),
    "glm4": transformers.Glm4Config(**GROUPED),
    "cohere": transformers.CohereConfig(**SHAPE, num_key_value_heads=2),
}
SCALED = ((0, 0, 1.0), (1, 1, 0.7), (1, 1, 1.6), (0, 3, 1.2), (1, 0, 0.8), (0, 2, 2.0))
IDENTITY = tuple((0, layer, 1.0) for layer in range(LAYERS))
IDS = torch.arange(3, 43).view(2, 20)
MakeFamily = Callable[..., list[Path]]


def path_recipe(
    folders: list[Path], hops: tuple[tuple[int, int, float], ...], *, slots: tuple[object, ...] = (0, 1), **more: object
) -> Recipe:
    """A path of (slot, layer, scale) over the folders of two models."""
    signed = any(scale < 0 for _, _, scale in hops)
    visits = tuple(Hop(slot=slot, layer=layer, scale=scale) for slot, layer, scale in hops)
    body = PathBody(slots=slots, hops=visits, signed=signed)
    values = {"sources": tuple(Source(path=str(f)) for f in folders), "dtype": "float32", "body": body}
    return Recipe(**values | more)


def resident(folders: list[Path], dtype: str = "float32") -> ResidentModel:
    return ResidentModel([Checkpoint.open(folder) for folder in folders], dtype=dtype)


def logits(model: object, ids: torch.Tensor = IDS, **options: object) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def pair(make_family: MakeFamily) -> list[Path]:
    return make_family(ARCHITECTURES["llama"], experts=1, noise=0.05)


def by_hand(folders: list[Path], hops: tuple[tuple[int, int, float], ...]) -> torch.Tensor:
    """Layer after layer, on models that transformers loaded (Llama)."""
    models = [transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    body = models[0].model
    with torch.no_grad():
        state = body.embed_tokens(IDS)
        positions = body.rotary_emb(state, torch.arange(IDS.shape[1])[None])
        for slot, layer, scale in hops:
            state = models[slot].model.layers[layer](state * scale, position_embeddings=positions)
        return models[0].lm_head(body.norm(state))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_identity_path_is_model_a_bit_for_bit(name: str, make_family: MakeFamily) -> None:
    folders = make_family(ARCHITECTURES[name], experts=1)
    model = resident(folders).apply(path_recipe(folders, IDENTITY))
    base = transformers.AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    assert torch.equal(logits(model), logits(base))
    assert type(model) is type(base)


@pytest.mark.parametrize(
    "hops",
    [
        ((0, 0, 1.0), (0, 1, 1.0), (0, 1, 1.0), (0, 2, 1.0), (0, 3, 1.0)),  # repeated
        ((0, 0, 1.0), (0, 3, 1.0)),  # skipped
        ((0, 0, 1.0), (1, 1, 1.0), (1, 2, 1.0), (0, 3, 1.0)),  # swapped
        ((1, 3, 1.0),),
        SCALED,
        ((0, 0, 1.0), (1, 1, -0.7), (0, 2, 1.3), (1, 3, -2.0)),
        tuple((hop % 2, hop % LAYERS, 1.0 + 0.1 * (hop % 3)) for hop in range(40)),  # long
    ],
)
def test_a_path_is_its_layers_one_after_the_other(pair: list[Path], hops: tuple[tuple[int, int, float], ...]) -> None:
    assert torch.allclose(
        logits(resident(pair).apply(path_recipe(pair, hops))), by_hand(pair, hops), rtol=1e-5, atol=1e-6
    )


def test_no_weight_is_copied(pair: list[Path]) -> None:
    live = resident(pair)
    first, second = (live.apply(path_recipe(pair, hops)) for hops in (SCALED, IDENTITY))
    places = [p.data_ptr() for p in first.parameters()]
    assert len(list(first.model.layers)) == len(SCALED)
    layers = first.model.layers
    assert layers[1].mlp.up_proj.weight is layers[2].mlp.up_proj.weight
    assert layers[0].mlp.up_proj.weight is second.model.layers[0].mlp.up_proj.weight
    mapped = live._checkpoints[1].tensor("model.layers.1.mlp.up_proj.weight")
    assert mapped.data_ptr() in places
    assert first.config.num_hidden_layers == len(SCALED)
    assert second.config.num_hidden_layers == LAYERS
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(len(SCALED)))


def greedy(model: object, ids: torch.Tensor, mask: torch.Tensor, *, cached: bool, steps: int = 10) -> torch.Tensor:
    """New tokens, by `generate` with a cache, or by running everything again for each of them."""
    if cached:
        options = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None}
        return model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    start = ids.shape[1]
    for _ in range(steps):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        chosen = logits(model, ids, attention_mask=mask, position_ids=positions, use_cache=False)[:, -1]
        ids = torch.cat([ids, chosen.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return ids[:, start:]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cached_decoding_equals_uncached_with_left_padding(name: str, make_family: MakeFamily) -> None:
    folders = make_family(ARCHITECTURES[name], experts=1, noise=0.05)
    model = resident(folders).apply(path_recipe(folders, SCALED))
    mask = torch.ones_like(IDS)
    mask[0, :7] = 0
    ids = IDS.masked_fill(mask == 0, 0)
    assert torch.equal(greedy(model, ids, mask, cached=True), greedy(model, ids, mask, cached=False))


def test_right_padding_changes_nothing_before_it(pair: list[Path]) -> None:
    model = resident(pair).apply(path_recipe(pair, SCALED))
    padded = torch.cat([IDS, torch.zeros(2, 6, dtype=torch.int64)], dim=1)
    mask = (torch.arange(26) < 20).long().expand(2, -1)
    assert torch.allclose(logits(model, padded, attention_mask=mask)[:, :20], logits(model), atol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_export_is_the_folded_model_and_computes_the_path(
    name: str, make_family: MakeFamily, tmp_path: Path
) -> None:
    folders = make_family(ARCHITECTURES[name], experts=1, noise=0.05)
    recipe = path_recipe(folders, SCALED)
    live = resident(folders)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(write_checkpoint(recipe, tmp_path / "path"))
    assert reloaded.config.num_hidden_layers == len(SCALED)
    assert torch.equal(logits(reloaded), logits(live.apply(recipe, folded=True)))
    assert distance(logits(reloaded), logits(live.apply(recipe))) < 1e-4
    mask = torch.ones_like(IDS)
    assert torch.equal(greedy(reloaded, IDS, mask, cached=True), greedy(live.apply(recipe), IDS, mask, cached=True))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-neox", "gpt2", "phi3", "glm4"])
def test_signs_are_folded_into_the_norms(name: str, make_family: MakeFamily, tmp_path: Path) -> None:
    folders = make_family(ARCHITECTURES[name], experts=1, noise=0.05)
    recipe = path_recipe(folders, ((0, 0, 1.0), (1, 1, -0.7), (0, 2, 1.3), (1, 2, -1.1), (0, 3, -2.0)))
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(write_checkpoint(recipe, tmp_path / "path"))
    assert distance(logits(reloaded), logits(resident(folders).apply(recipe))) < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_cast_once(dtype: str, make_family: MakeFamily, tmp_path: Path) -> None:
    folders = make_family(ARCHITECTURES["llama"], experts=1, noise=0.05)
    recipe = path_recipe(folders, SCALED, dtype=dtype)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(
        write_checkpoint(recipe, tmp_path / "path"), dtype="auto"
    )
    assert reloaded.dtype is getattr(torch, dtype)
    assert torch.equal(logits(reloaded), logits(resident(folders, dtype).apply(recipe, folded=True)))
    weight = Checkpoint.open(folders[1]).tensor("model.layers.1.mlp.down_proj.weight")
    exact = (weight * (1.0 / 0.7)).to(reloaded.dtype)
    assert torch.equal(reloaded.model.layers[1].mlp.down_proj.weight, exact)


def test_merged_slots(pair: list[Path], tmp_path: Path) -> None:
    def merge(weight: float) -> Blocks:
        return Blocks(blocks=(Block(layers=(0, LAYERS), operator=TaskArithmetic(weights=(weight,))),))

    live = resident(pair)
    recipe = path_recipe(pair, IDENTITY, slots=(merge(0.5),))
    alone = recipe.model_copy(update={"body": merge(0.5)})
    merged = logits(live.apply(alone))
    assert torch.equal(logits(live.apply(recipe)), merged)
    other = path_recipe(
        pair, (*IDENTITY[:2], (1, 1, 0.9), (2, 2, 1.0), IDENTITY[3]), slots=(merge(0.5), merge(-0.3), 1)
    )
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(write_checkpoint(other, tmp_path / "path"))
    assert distance(logits(reloaded), logits(live.apply(other))) < 1e-4
    assert torch.equal(logits(live.apply(recipe)), merged), "a slot keeps its merge until another one is asked for"


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, LAYERS - 1), st.floats(0.2, 4.0)), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_folding_never_changes_the_function(pair: list[Path], hops: list[tuple[int, int, float]]) -> None:
    live, recipe = resident(pair), path_recipe(pair, tuple(hops))
    assert apart(live.apply(recipe), live.apply(recipe, folded=True)) < 1e-3


def test_what_cannot_be_folded_is_refused_by_name(make_family: MakeFamily, tmp_path: Path) -> None:
    folders = make_family(transformers.Olmo2Config(**SHAPE), experts=1)
    with pytest.raises(BadRecipe, match=r"olmo2.*post_attention_layernorm.*scales: none"):
        folding_of(Checkpoint.open(folders[0]))
    with pytest.raises(BadRecipe, match="olmo2"):
        write_checkpoint(path_recipe(folders, SCALED), tmp_path / "scaled")
    plain = path_recipe(folders, (*IDENTITY[:2], (1, 1, 1.0), *IDENTITY[2:]))
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(write_checkpoint(plain, tmp_path / "plain"))
    assert torch.equal(logits(reloaded), logits(resident(folders).apply(plain)))


def test_an_export_that_is_another_model_is_not_kept(pair: list[Path], tmp_path: Path) -> None:
    """A stream so small that the epsilon of the norms counts."""
    recipe = path_recipe(pair, ((0, 0, 1.0), (0, 1, 1e-4), (0, 2, 1.0), (0, 3, 1.0)))
    with pytest.raises(BadRecipe, match=r"logits differ by .* of their size \(at most 0.001 in float32\)"):
        write_checkpoint(recipe, tmp_path / "path")
    assert not list(tmp_path.iterdir())


def test_layers_that_do_not_exist(pair: list[Path], tmp_path: Path) -> None:
    recipe = path_recipe(pair, ((0, 0, 1.0), (1, 4, 1.0)))
    with pytest.raises(BadRecipe, match="hop 1 visits layer 4.*0 to 3"):
        resident(pair).apply(recipe)
    with pytest.raises(BadRecipe, match="hop 1 visits layer 4.*0 to 3"):
        write_checkpoint(recipe, tmp_path / "path")


@pytest.mark.parametrize(("width", "number", "usual"), [("intermediate_size", 96, 64), ("hidden_size", 48, 32)])
def test_models_of_different_width_are_refused_with_both_shapes(
    make_family: MakeFamily, width: str, number: int, usual: int
) -> None:
    (one,) = make_family(ARCHITECTURES["llama"], experts=0)
    (other,) = make_family(transformers.LlamaConfig(**GROUPED | {width: number}), experts=0)
    with pytest.raises(BadSource, match=rf"\[.*{number}.*\].*\[.*{usual}.*\]"):
        resident([one, other])


def test_layers_that_need_another_config_are_refused(make_family: MakeFamily) -> None:
    (one,) = make_family(ARCHITECTURES["llama"], experts=0)
    (other,) = make_family(transformers.LlamaConfig(**GROUPED | {"rms_norm_eps": 1e-3}), experts=0)
    with pytest.raises(BadSource, match=r"rms_norm_eps is 0.001.*1e-10.*one config"):
        resident([one, other]).apply(path_recipe([one, other], SCALED))


def test_models_without_a_stack_of_layers() -> None:
    class Nothing(torch.nn.Module):
        config = transformers.LlamaConfig(**GROUPED)

    with pytest.raises(BadRecipe, match="Nothing: no stack of 4 layers"):
        assemble(Nothing(), [Visit(Nothing(), 0, 1.0)])


def test_mergekit_slices_and_back(pair: list[Path], tmp_path: Path) -> None:
    hops = ((0, 0, 1.0), (0, 1, 1.0), (1, 1, 0.7), (1, 2, 1.0), (1, 2, 1.3), (0, 3, 1.0))
    recipe = path_recipe(pair, hops)
    text = to_mergekit(recipe)
    slices = yaml.safe_load(text)["slices"]
    assert [s["sources"][0]["layer_range"] for s in slices] == [[0, 2], [1, 3], [2, 3], [3, 4]]
    gain = {"filter": "self_attn.o_proj", "value": 1.0 / 0.7}
    assert slices[1]["sources"][0]["parameters"]["scale"][0] == gain
    back = from_mergekit(text)
    found = [(hop.slot, hop.layer) for hop in back.body.hops]
    assert found == [(slot, layer) for slot, layer, _ in hops]
    assert [hop.scale for hop in back.body.hops] == pytest.approx([scale for *_, scale in hops])
    live = resident(pair)
    assert distance(logits(live.apply(back)), logits(live.apply(recipe))) < 1e-6
    assert from_mergekit(to_mergekit(path_recipe(pair, IDENTITY))).body.kind == "blocks"


def test_a_frankenmerge_of_mergekit_becomes_a_path(pair: list[Path], tmp_path: Path) -> None:
    text = f"""
    merge_method: passthrough
    slices:
      - sources: [{{model: {pair[0]}, layer_range: [0, 3]}}]
      - sources: [{{model: {pair[1]}, layer_range: [1, 3]}}]
      - sources: [{{model: {pair[0]}, layer_range: [2, 4]}}]
    dtype: float32
    """
    folder = write_checkpoint(from_mergekit(text), tmp_path / "path")
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    hops = tuple((slot, layer, 1.0) for slot, layer in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (0, 2), (0, 3)))
    assert torch.allclose(logits(reloaded), by_hand(pair, hops), rtol=1e-5, atol=1e-6)
    for old, new, match in (
        ("[2, 4]", "[2, 5]", "there is no layer 4"),
        (f"{pair[0]}, layer_range: [2", f"{pair[1]}, layer_range: [2", "embeddings are those of .*base.*expert1"),
        ("[1, 3]", "[1, 3], parameters: {scale: 0.5}", "one positive number for self_attn.o_proj and mlp.down_proj"),
        ("passthrough", "linear", "only passthrough may move"),
    ):
        assert old in text
        with pytest.raises(BadRecipe, match=match):
            from_mergekit(text.replace(old, new))


def test_paths_that_mergekit_cannot_express(pair: list[Path], make_family: MakeFamily) -> None:
    def refused(recipe: Recipe, match: str) -> None:
        with pytest.raises(BadRecipe, match=match):
            to_mergekit(recipe)

    merge = Blocks(blocks=(Block(layers=(0, LAYERS), operator=TaskArithmetic(weights=(0.5,))),))
    refused(path_recipe(pair, IDENTITY, slots=(merge,)), "cannot merge and stack")
    refused(path_recipe(pair, ((0, 0, 1.0), (0, 1, -1.0), (0, 2, 1.0))), "negative scale")
    refused(path_recipe(pair, ((0, 0, 1.0), (1, 1, 1.0))), "first and the last slice")
    gemma = make_family(ARCHITECTURES["gemma2"], experts=1)
    refused(path_recipe(gemma, SCALED), "layer_types")
    refused(path_recipe(gemma, (*IDENTITY[:2], (0, 2, 1.5), IDENTITY[3])), "shifts those of norms")


def path_space_of(folders: list[Path], **space: object) -> PathSpace:
    """The space that a search file over these models lays out."""
    names = [folder.name for folder in folders[1:]]
    value = {
        "name": "x",
        "sources": {"base": str(folders[0]), "experts": list(map(str, folders[1:]))},
        "space": {"kind": "data_flow", "models": names, **space},
        "objectives": [{"task": "t"}],
    }
    file = SearchFile.model_validate(value)
    sources = tuple(Source(path=str(folder)) for folder in folders)
    return make_path_space(file, file.space, sources, [Checkpoint.open(folder) for folder in folders])


def test_a_search_that_could_not_export_its_winner_does_not_begin(pair: list[Path], make_family: MakeFamily) -> None:
    assert path_space_of(pair).tokenizer == 1, "that of model A"
    with pytest.raises(BadSearch, match=r"space: models: 'x' is not known; expected one of base, expert1"):
        path_space_of(pair, models=["x"])
    olmo = make_family(transformers.Olmo2Config(**SHAPE), experts=1)
    with pytest.raises(BadRecipe, match="olmo2.*scales: none"):
        path_space_of(olmo)
    assert path_space_of(olmo, scales="none").settings.scales == "none"
    (other,) = make_family(transformers.LlamaConfig(**GROUPED | {"rms_norm_eps": 1e-3}), experts=0)
    with pytest.raises(BadSource, match="rms_norm_eps"):
        path_space_of([*pair, other.rename(other.parent / "other")])


def test_memory_counts_merges_and_sources_of_another_dtype(pair: list[Path]) -> None:
    checkpoints = [Checkpoint.open(folder) for folder in pair]
    space = path_space_of(pair)
    assert copies(replace(space, dtype="float32"), checkpoints) == 1
    assert copies(replace(space, dtype="bfloat16"), checkpoints) == 2
    merged = replace(space, models=(alone(0, 2), alone(1, 2), 1), dtype="float32")
    assert copies(merged, checkpoints) == 3
