"""Models whose layers lie on several devices, which are pretended: everything follows the layers, no number changes."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from pretend_devices import MixedDevices, device_of, pretended
from torch._subclasses.fake_tensor import FakeTensorMode

from evomerge.errors import NotEnoughRoom
from evomerge.merging import spread
from evomerge.merging.assembly import layers_of
from evomerge.merging.calibrations import keep
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.observation import ensure
from evomerge.merging.opening import open_sources
from evomerge.merging.resident import ResidentModel
from evomerge.merging.statistics import Statistic, read
from search_spaces.calibration import Calibration, Sample
from search_spaces.operators import Fisher, Linear, MergeOperator, Rcp, RegMean, RegMeanPlus, TaskArithmetic, Ties
from search_spaces.recipe import Block, Blocks, Hop, PathBody, Recipe, Source

GIB = 2**30
LAYERS = 4
ONE, TWO, THREE = "cuda:0", ("cuda:0", "cuda:1"), ("cuda:0", "cuda:1", "cuda:2")
SHAPE = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
GROUPED = SHAPE | {"num_key_value_heads": 2, "head_dim": 8}
MIXED = GROUPED | {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5}
GPT2 = {"vocab_size": 48, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
PLAIN = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "llama-tied": transformers.LlamaConfig(**GROUPED | {"tie_word_embeddings": True}),
    "qwen2-sliding": transformers.Qwen2Config(**MIXED, use_sliding_window=True),
    "qwen3": transformers.Qwen3Config(**GROUPED),
    "mistral-sliding": transformers.MistralConfig(**GROUPED, sliding_window=5),
    "gpt-neox": transformers.GPTNeoXConfig(**SHAPE),
    "gemma2": transformers.Gemma2Config(**MIXED),
    "gemma3": transformers.Gemma3TextConfig(**MIXED),
    "gpt2": transformers.GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2),
    "phi3": transformers.Phi3Config(**SHAPE, num_key_value_heads=2),
    "glm4": transformers.Glm4Config(**GROUPED),
    "cohere": transformers.CohereConfig(**SHAPE, num_key_value_heads=2),
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES = PLAIN | {
    "qwen3-moe": transformers.Qwen3MoeConfig(**GROUPED, **EXPERTS, num_experts=4),
    "mixtral": transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
}
QUICK = {"llama", "llama-tied", "gemma2", "gpt2", "qwen3-moe"}
IDS = torch.arange(3, 43).view(2, 20)
MakeFamily = Callable[..., list[Path]]


def recipe_of(folders: list[Path], operator: MergeOperator | None = None, dtype: str = "float32") -> Recipe:
    """A merge of blocks, or one by a single operator."""
    blocks = (
        Block(layers=(0, 1), operator=TaskArithmetic(weights=(0.7,))),
        Block(layers=(0, 99), tensors=("*mlp*",), operator=Ties(weights=(0.5,), densities=(0.4,))),
        Block(layers=(0, 99), operator=Linear(weights=(0.5, 0.25))),
    )
    if operator is not None:
        blocks = (Block(layers=(0, 99), operator=operator),)
    return Recipe(sources=tuple(Source(path=str(f)) for f in folders), dtype=dtype, body=Blocks(blocks=blocks))


def path_of(folders: list[Path]) -> Recipe:
    """A path over two models, whose scales differ from hop to hop."""
    hops = ((0, 0, 1.0), (1, 1, 0.7), (1, 1, 1.6), (0, 3, 1.2), (1, 0, 0.8), (0, 2, 2.0))
    body = PathBody(slots=(0, 1), hops=tuple(Hop(slot=s, layer=layer, scale=scale) for s, layer, scale in hops))
    return Recipe(sources=tuple(Source(path=str(f)) for f in folders), dtype="float32", body=body)


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pretended(monkeypatch, free={0: GIB, 1: GIB, 2: GIB}):
        yield


def resident(folders: list[Path], device: str | tuple[str, ...], dtype: str = "float32") -> ResidentModel:
    return ResidentModel([Checkpoint.open(folder) for folder in folders], dtype=dtype, device=device)


def logits(model: Any, ids: torch.Tensor = IDS, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        found = model(input_ids=ids.to(model.device), **options).logits
    assert device_of(found) == torch.device("cuda:0")
    return found.cpu()


def devices(model: Any) -> set[str]:
    return {str(parameter.device) for parameter in model.parameters()}


def families(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", families(ARCHITECTURES))
def test_a_merge_spread_over_devices_is_the_merge_on_one(name: str, make_family: MakeFamily) -> None:
    folders = make_family(ARCHITECTURES[name], experts=1, noise=0.05)
    recipe = recipe_of(folders)
    alone = resident(folders, ONE)
    wanted = logits(alone.apply(recipe))
    for several in (TWO, THREE):
        live = resident(folders, several)
        model = live.apply(recipe)
        assert devices(model) == set(several)
        assert all(torch.equal(live.tensors[n].cpu(), alone.tensors[n].cpu()) for n in alone.tensors)
        assert torch.equal(logits(model), wanted)


def test_what_is_on_a_device_is_one_buffer_as_large_as_was_said(make_family: MakeFamily) -> None:
    folders = make_family(ARCHITECTURES["llama"], experts=0)
    live = resident(folders, TWO, "bfloat16")
    for device, used in zip(TWO, live.placements[0].used, strict=True):
        there = [p for p in live.model.parameters() if str(p.device) == device]
        assert len({p.untyped_storage().data_ptr() for p in there}) == 1
        assert there[0].untyped_storage().nbytes() == used == sum(p.nbytes for p in there)
    assert {str(buffer.device) for buffer in live.model.buffers()} <= set(TWO)


def test_ties_stay_tied(make_family: MakeFamily) -> None:
    model = resident(make_family(ARCHITECTURES["llama-tied"], experts=0), TWO).model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_without_the_hooks_devices_meet(make_family: MakeFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    """What shows that the other tests would notice."""
    monkeypatch.setattr(spread._Bringing, "__call__", lambda *_: None)
    folders = make_family(ARCHITECTURES["llama"], experts=1)
    model = resident(folders, TWO).apply(recipe_of(folders))
    with pytest.raises(MixedDevices, match="in one operation"):
        logits(model)


def test_masks_and_rotary_embeddings_come_over_once(make_family: MakeFamily) -> None:
    folders = make_family(ARCHITECTURES["llama"], experts=1)
    model = resident(folders, TWO).apply(recipe_of(folders))
    seen: list[dict[str, Any]] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, __, named: seen.append(named), with_kwargs=True)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    logits(model, attention_mask=mask.to(model.device))
    places = [str(named["attention_mask"].device) for named in seen]
    assert places == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert seen[2]["attention_mask"] is seen[3]["attention_mask"]
    assert seen[2]["position_embeddings"][0] is seen[3]["position_embeddings"][0]
    seen.clear()
    hooks = {hook for layer in model.model.layers for hook in layer._forward_pre_hooks.values()}
    assert not any(getattr(hook, "_copies", ()) for hook in hooks), "and are gone when what they copy is"


@pytest.mark.parametrize("name", families(PLAIN))
def test_paths_cross_devices_at_every_hop(name: str, make_family: MakeFamily) -> None:
    folders = make_family(ARCHITECTURES[name], experts=1, noise=0.05)
    recipe = path_of(folders)
    alone, live = resident(folders, ONE), resident(folders, TWO)
    for folded in (False, True):
        wanted, model = alone.apply(recipe, folded=folded), live.apply(recipe, folded=folded)
        homes = [str(next(layer.parameters()).device) for layer in layers_of(model)]
        assert homes == ["cuda:0", "cuda:0", "cuda:0", "cuda:1", "cuda:0", "cuda:1"]
        assert torch.equal(logits(model), logits(wanted))
        mask = torch.ones_like(IDS)
        mask[0, :7] = 0
        assert torch.equal(continued(model, mask), continued(wanted, mask))
    assert len(live.placements) == 3, "of the merge, which is not used, and of each slot"


def continued(model: Any, mask: torch.Tensor, steps: int = 6) -> torch.Tensor:
    """New tokens, with keys and values kept."""
    ids, seen, cache = IDS.to(model.device), mask.to(model.device), None
    found = []
    for _ in range(steps):
        with torch.inference_mode():
            out = model(input_ids=ids, attention_mask=seen, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
        found.append(ids.cpu())
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3-moe"])
def test_keys_and_values_follow_the_layers(name: str, make_family: MakeFamily) -> None:
    folders = make_family(ARCHITECTURES[name], experts=1, noise=0.05)
    recipe = recipe_of(folders)
    model, wanted = (resident(folders, device).apply(recipe) for device in (TWO, ONE))
    mask = torch.ones_like(IDS)
    mask[1, :4] = 0
    assert torch.equal(continued(model, mask), continued(wanted, mask))


def test_too_large_a_model_is_refused_before_anything_is_taken(
    make_family: MakeFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = make_family(ARCHITECTURES["llama"], experts=0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 14, GIB))
    with pytest.raises(NotEnoughRoom, match=r"cluster.gpus_per_worker: .*0\.00 GiB on cuda:0, 0\.00 GiB on cuda:1"):
        resident(folders, TWO)


# ------------------------------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize("name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "qwen3-moe"))])
@pytest.mark.parametrize("operator", [Fisher, RegMean, RegMeanPlus, partial(Rcp, source=1)])
def test_statistics_are_those_of_one_device(
    operator: Any, name: str, make_family: MakeFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = make_family(ARCHITECTURES[name], experts=2, noise=0.05)
    samples = tuple(Sample(tokens=tuple(range(4 + i, 12 + 2 * i)), answer=3) for i in range(3))
    prompts = Calibration(samples=samples, experts=((0, 1), (1, 2)))
    wanted = operator(weights=(0.3, 0.9), prompts=prompts.digest)
    found = []
    for device in (ONE, TWO):
        monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / str(len(device))))
        keep(prompts)
        ensure(recipe_of(folders, wanted), open_sources(folders, 0), device=device)
        found.append([dict(statistic_tensors(each)) for each in read(wanted, recipe_of(folders, wanted))])
    for one, two in zip(*found, strict=True):
        assert one.keys() == two.keys() and one
        assert all(torch.equal(one[key], two[key]) for key in one)


def statistic_tensors(statistic: Statistic) -> Iterator[tuple[str, torch.Tensor]]:
    for name in statistic.files:
        yield name, statistic.tensor(name)


# ------------------------------------------------------------------------------- the pretence, against PyTorch's rule

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "matmul": lambda a, b: a @ b.T,
    "linear": F.linear,
    "cat": lambda a, b: torch.cat([a, b]),
    "stack": lambda a, b: torch.stack([a, b]),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "scalar": lambda a, b: a * b.sum(),
    "embedding": lambda a, b: F.embedding(b.long(), a),
    "gather": lambda a, b: a.gather(1, b.long()),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 0.0),
    "to": lambda a, b: a.to(b),
    "out": lambda a, b: torch.add(a, 1.0, out=b),
    "index_add_": lambda a, b: a.index_add_(0, torch.zeros(2, dtype=torch.int64, device=a.device), b),
}
NOT_IN_FAKE_MODE: dict[str, tuple[Callable[[Any, Any], Any], bool]] = {  # and whether GPUs take indices from the CPU
    "sdpa": (lambda a, b: F.scaled_dot_product_attention(a[None], b[None], b[None]), False),
    "layer_norm": (lambda a, b: F.layer_norm(a, (2,), b[0]), False),
    "index_select": (lambda a, b: a.index_select(0, b[0].long()), False),
    "index": (lambda a, b: a[b[0].long()], True),
}
PLACES = [("cuda:0", "cuda:1"), ("cuda:1", "cuda:1"), ("cuda:0", "cpu"), ("cpu", "cuda:0")]


def placed(operation: Callable[[Any, Any], Any], places: tuple[str, str]) -> str:
    first, second = (torch.zeros(2, 2, device=place) for place in places)
    try:
        return str(operation(first, second).device)
    except MixedDevices:
        return "refused"


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_refused_is_what_pytorch_refuses(name: str, places: tuple[str, str]) -> None:
    with torch._C.DisableTorchFunction(), FakeTensorMode():
        first, second = (torch.empty(2, 2, device=place) for place in places)
        try:
            wanted = str(OPERATIONS[name](first, second).device)
        except RuntimeError as error:
            assert "device" in str(error) and "not linked" not in str(error)
            wanted = "refused"
    assert placed(OPERATIONS[name], places) == wanted


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("name", NOT_IN_FAKE_MODE)
def test_what_fake_mode_cannot_say_without_a_gpu(name: str, places: tuple[str, str]) -> None:
    operation, indexed = NOT_IN_FAKE_MODE[name]
    fits = places[0] == places[1] or (indexed and places[1] == "cpu")
    assert placed(operation, places) == (places[0] if fits else "refused")
