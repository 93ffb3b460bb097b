"""Mixtures of experts with fewer experts: what stays the same, what is averaged, what is refused."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from evomerge.cli import app
from evomerge.compress import compress
from evomerge.errors import BadRecipe, BadSource, NotEnoughRoom, UserMistake
from evomerge.merging import compression, exhibit
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.export import write_checkpoint
from evomerge.merging.mixtures import mixtures_of
from evomerge.merging.preparations import COMPRESSION
from evomerge.merging.routing import Routing, groups_of, observe, reroute
from evomerge.merging.sources import fingerprint
from search_spaces.calibration import Calibration, Sample
from search_spaces.operators import Linear
from search_spaces.recipe import Block, Blocks, Recipe, Source, alone

KINDS = ["qwen3_moe", "mixtral", "granitemoe", "gpt_oss"]  # a file a matrix, twice; stacks; transposed, with biases
WIDTH, UNITS, EXPERTS = 16, 12, 4
PROMPTS = ["w4 w9 w17 w30", "w5 w6 w7", "w40 w41 w8 w22 w13 w9", "w11 w12"] * 3
Maker = Callable[..., list[Path]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n", encoding="utf-8")
    return tmp_path / "prompts.txt"


def config(kind: str, chosen: int = 2) -> Any:
    sizes = {
        "vocab_size": 48, "hidden_size": WIDTH, "intermediate_size": UNITS, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False, "num_experts_per_tok": chosen,
    }  # fmt: skip
    if kind == "qwen3_moe":
        more = {"num_experts": EXPERTS, "moe_intermediate_size": UNITS, "head_dim": 8, "norm_topk_prob": True}
        return transformers.Qwen3MoeConfig(**sizes, **more)
    if kind == "gpt_oss":
        rope = {"rope_type": "default", "rope_theta": 1e4}
        return transformers.GptOssConfig(**sizes, num_local_experts=EXPERTS, head_dim=8, rope_parameters=rope)
    return transformers.AutoConfig.for_model(kind, **sizes, num_local_experts=EXPERTS)


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load(folder)(torch.tensor([[5, 9, 3, 17, 40, 8, 21]])).logits


def stacks(model: Any) -> list[tuple[Any, Any]]:
    """Experts and router of every layer."""
    found = []
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            home = model.get_submodule(name.removesuffix(".experts"))
            found.append((module, home.gate if hasattr(home, "gate") else home.router))
    return found


@torch.no_grad()
def copy_expert(experts: Any, source: int, to: int, order: list[int]) -> None:
    """Make expert ``to`` the same function as ``source``, with its hidden units in another order."""
    gate_up, down = experts.gate_up_proj, experts.down_proj
    if experts.is_transposed:  # GPT-OSS: gate and up take turns
        gate_up[to] = gate_up[source].view(WIDTH, UNITS, 2)[:, order].reshape(WIDTH, -1)
        experts.gate_up_proj_bias[to] = experts.gate_up_proj_bias[source].view(UNITS, 2)[order].reshape(-1)
        experts.down_proj_bias[to] = experts.down_proj_bias[source]
        down[to] = down[source][order]
    else:
        gate_up[to] = gate_up[source].view(2, UNITS, WIDTH)[:, order].reshape(-1, WIDTH)
        down[to] = down[source][:, order]


def changed(folder: Path, to: Path, change: Callable[[Any], None]) -> Path:
    """Write the model of ``folder`` after ``change``."""
    model = load(folder)
    change(model)
    model.save_pretrained(to)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_groups_are_a_partition_around_the_most_frequent(counts: list[int], seed: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(counts)))
    seen = np.random.default_rng(seed).normal(size=(7, len(counts)))
    routing = Routing(np.array(counts, float), seen.T @ seen)
    groups = groups_of(routing, number)
    assert sorted(chain.from_iterable(group.members for group in groups)) == list(range(len(counts)))
    dominant = [group.dominant for group in groups]
    assert len(groups) == number and dominant == sorted(dominant)
    others = [count for expert, count in enumerate(counts) if expert not in dominant]
    assert not others or min(counts[d] for d in dominant) >= max(others)
    unit = seen / np.linalg.norm(seen, axis=0)
    cosine = unit.T @ unit
    for group in groups:
        assert group.dominant in group.members
        for member in set(group.members) - {group.dominant}:
            assert cosine[member, group.dominant] == pytest.approx(max(cosine[member, d] for d in dominant))


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_experts_as_before_are_the_same_model(
    make_family: Maker, prompts: Path, kind: str, tmp_path: Path
) -> None:
    (folder,) = make_family(config(kind), experts=0)
    told: list[tuple[int, int]] = []
    compress(str(folder), EXPERTS, prompts, tmp_path / "same", progress=lambda *shares: told.append(shares))
    before, after = Checkpoint.open(folder), Checkpoint.open(tmp_path / "same")
    assert before.names == after.names
    assert all(torch.equal(before.tensor(name), after.tensor(name)) for name in before.names)
    assert told == [(done, 2 * len(PROMPTS) + 2) for done in range(1, 2 * len(PROMPTS) + 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_copies_of_one_expert_merge_back_into_it(
    make_family: Maker, prompts: Path, kind: str, tmp_path: Path
) -> None:
    (folder,) = make_family(config(kind), experts=0)

    def copies(model: Any) -> None:
        random = np.random.default_rng(3)
        for experts, _ in stacks(model):
            for to in range(1, EXPERTS):
                copy_expert(experts, 0, to, random.permutation(UNITS).tolist())

    copied = changed(folder, tmp_path / "copied", copies)
    compress(str(copied), 2, prompts, tmp_path / "small")
    small = load(tmp_path / "small")  # stock transformers
    assert [experts.gate_up_proj.shape[0] for experts, _ in stacks(small)] == [2, 2]
    assert [router.weight.shape[0] for _, router in stacks(small)] == [2, 2]
    assert small.config.num_local_experts == 2
    torch.testing.assert_close(logits(tmp_path / "small"), logits(copied), rtol=1e-5, atol=1e-6)
    ids = small.generate(torch.tensor([[5, 9]]), max_new_tokens=3, do_sample=False)
    assert ids.shape[1] > 2


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_copies_that_share_their_router_row_merge_back(
    make_family: Maker, prompts: Path, kind: str, tmp_path: Path
) -> None:
    (folder,) = make_family(config(kind, chosen=1), experts=0)

    def pairs(model: Any) -> None:
        random = np.random.default_rng(5)
        for experts, router in stacks(model):
            with torch.no_grad():
                router.weight[1] = -router.weight[0]
                for to in (2, 3):
                    copy_expert(experts, to - 2, to, random.permutation(UNITS).tolist())
                    router.weight[to] = router.weight[to - 2]

    doubled = changed(folder, tmp_path / "doubled", pairs)
    compress(str(doubled), 2, prompts, tmp_path / "small")
    torch.testing.assert_close(logits(tmp_path / "small"), logits(doubled), rtol=1e-5, atol=1e-6)


def test_a_group_is_the_average_weighted_by_frequency(make_family: Maker, prompts: Path, tmp_path: Path) -> None:
    (folder,) = make_family(config("qwen3_moe"), experts=0)
    remarks = compress(str(folder), 3, prompts, tmp_path / "small")
    assert remarks[0] == "4 experts became 3 in each of 2 layers"
    record = json.loads((tmp_path / "small" / COMPRESSION).read_text())
    assert (record["model"], record["reference"], record["experts"]) == (fingerprint(folder), fingerprint(folder), 3)
    assert (tmp_path / "small" / f"calibration-{record['prompts'][:16]}.json").is_file()
    before, after = stacks(load(folder)), stacks(load(tmp_path / "small"))
    for layer, (old, _), (new, _) in zip(record["layers"], before, after, strict=True):
        assert sum(layer["frequencies"]) == pytest.approx(1.0)
        for number, group in enumerate(layer["groups"]):
            gate_up = old.gate_up_proj.detach().double().view(EXPERTS, 2, UNITS, WIDTH)
            down = old.down_proj.detach().double()
            weights = np.array([layer["frequencies"][member] for member in group["members"]])
            weights = weights / weights.sum() if weights.any() else np.full(len(weights), 1 / len(weights))
            mean = torch.zeros_like(gate_up[0]), torch.zeros_like(down[0])
            d = group["dominant"]
            for member, weight in zip(group["members"], weights, strict=True):
                gain = sum(gate_up[d, k] @ gate_up[member, k].T for k in (0, 1)) + down[d].T @ down[member]
                order = linear_sum_assignment(gain.numpy(), maximize=True)[1]
                mean[0].add_(gate_up[member][:, order] * weight)
                mean[1].add_(down[member][:, order] * weight)
            torch.testing.assert_close(new.gate_up_proj[number].double(), mean[0].view(-1, WIDTH), rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(new.down_proj[number].double(), mean[1], rtol=1e-6, atol=1e-8)


def calibration(seed: int, samples: int = 6, length: int = 9) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 48, (samples, length), generator=generator).tolist()
    return Calibration(
        samples=tuple(Sample(tokens=tuple(own), answer=1) for own in tokens), experts=(tuple(range(samples)),)
    )


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_the_new_router_gives_groups_what_their_members_had(make_family: Maker, kind: str) -> None:
    (folder,) = make_family(config(kind), experts=0, dtype=torch.float32)
    recipe = Recipe(sources=(Source(path=str(folder)),), dtype="float32", body=alone(0, 1))
    shown = exhibit.Exhibit(recipe, [Checkpoint.open(folder)], device="cpu")
    shown.show(0)
    for _, router in stacks(shown.model):
        router.weight.mul_(20.0)  # so that the softmax is far from flat
    mixtures, samples = mixtures_of(shown), calibration(0, samples=40).samples
    groups = [groups_of(routing, 2) for routing in observe(shown, mixtures, samples, lambda: None)]
    inputs: list[torch.Tensor] = []
    router = stacks(shown.model)[0][1]
    hook = router.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].reshape(-1, WIDTH)))
    fitted = reroute(shown, mixtures, groups, samples, lambda: None)[0]
    hook.remove()
    seen = torch.cat(inputs).double()
    bias = router.bias.double() if kind == "gpt_oss" else torch.zeros(EXPERTS, dtype=torch.float64)
    old = seen @ router.weight.double().T + bias
    wanted = torch.stack([old[:, list(group.members)].logsumexp(1) for group in groups[0]], dim=1).softmax(1)
    new = seen @ fitted[0].T + (fitted[1] if kind == "gpt_oss" else 0.0)
    dominant = old[:, [group.dominant for group in groups[0]]]

    def divergence(found: torch.Tensor) -> float:
        return float((wanted * (wanted.log() - found.log_softmax(1))).sum(1).mean())

    assert divergence(new) < 0.5 * divergence(dominant)


def test_models_compressed_alike_merge_as_before(make_family: Maker, prompts: Path, tmp_path: Path) -> None:
    base, expert = make_family(config("mixtral"), experts=1, noise=0.02)

    def merged(sources: list[Path], to: Path) -> Path:
        body = Blocks(blocks=(Block(layers=(0, 9), operator=Linear(weights=(0.5, 0.5))),))
        recipe = Recipe(sources=tuple(Source(path=str(s)) for s in sources), dtype="float32", base=None, body=body)
        return write_checkpoint(recipe, to)

    small = [tmp_path / "base", tmp_path / "expert"]
    for folder, to in zip((base, expert), small, strict=True):
        compress(str(folder), 2, prompts, to, like=str(base))
    records = [json.loads((folder / COMPRESSION).read_text()) for folder in small]
    assert records[0]["layers"] == records[1]["layers"]
    assert records[1]["reference"] == fingerprint(base) != records[1]["model"]
    after = load(merged(small, tmp_path / "after"))
    compress(str(merged([base, expert], tmp_path / "whole")), 2, prompts, tmp_path / "before", like=str(base))
    before = load(tmp_path / "before")
    for (one, _), (two, _) in zip(stacks(after), stacks(before), strict=True):
        torch.testing.assert_close(one.gate_up_proj, two.gate_up_proj, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(one.down_proj, two.down_proj, rtol=1e-5, atol=1e-7)


def test_every_tensor_keeps_its_dtype(make_family: Maker, prompts: Path, tmp_path: Path) -> None:
    (folder,) = make_family(config("qwen3_moe"), experts=0, dtype=torch.bfloat16)
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    mixed = {name: tensor.float() if ".gate." in name else tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(mixed, file, metadata={"format": "pt"})
    compress(str(folder), 2, prompts, tmp_path / "small")
    small = Checkpoint.open(tmp_path / "small")
    assert {name: small.info(name).dtype for name in small.names} == {n: mixed[n].dtype for n in small.names}
    assert load(tmp_path / "small").dtype is torch.bfloat16


def test_what_cannot_be_compressed_is_refused(
    make_family: Maker, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = make_family(config("mixtral"), experts=0)
    to = tmp_path / "small"
    (dense,) = make_family(experts=0)
    with pytest.raises(BadSource, match="names no number of experts"):
        compress(str(dense), 2, prompts, to)
    with pytest.raises(UserMistake, match="has 4 a layer; expected 1 to 4"):
        compress(str(folder), 5, prompts, to)
    with pytest.raises(UserMistake, match="every token goes through 2"):
        compress(str(folder), 1, prompts, to)
    with pytest.raises(UserMistake, match="exists already"):
        compress(str(folder), 2, prompts, folder)
    with pytest.raises(BadSource, match="architecture"):
        (other,) = make_family(config("qwen3_moe"), experts=0)
        compress(str(folder), 2, prompts, to, like=str(other))
    foreign = tmp_path / "foreign.json"
    foreign.write_text(calibration(0).to_json().replace("[4,", "[400,").replace(",40,", ",400,"), encoding="utf-8")
    with pytest.raises(BadRecipe, match="hold token 400"):
        compress(str(folder), 2, foreign, to)
    rooms = (
        (compression, "available_bytes", "matching the 12 units"),
        (exhibit, "free_bytes", "Gram matrices of the routers"),
    )
    for module, room, match in rooms:
        with monkeypatch.context() as patch, pytest.raises(NotEnoughRoom, match=match):
            patch.setattr(module, room, lambda *_: -(1 << 30))
            compress(str(folder), 2, prompts, to)
    assert not to.exists()


def test_the_command_says_what_it_did(
    make_family: Maker, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = make_family(config("mixtral"), experts=0)
    to, options = tmp_path / "small", ["--experts", "2", "--prompts", str(prompts)]
    app(["compress", str(folder), *options, "--to", str(to), "--like", str(folder)], standalone_mode=False)
    said = capsys.readouterr()
    assert said.out == f"wrote {to}\n"
    assert "4 experts became 2 in each of 2 layers" in said.err


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("none.txt", "\n \n", "there are no prompts"),
        ("short.txt", "w4 w5\nw6\n", "line 2 is a single token"),
        ("broken.json", "{}", "not calibration prompts"),
        ("absent.txt", None, "cannot be read"),
    ],
)
def test_prompts_that_are_none_are_refused(
    make_family: Maker, name: str, text: str | None, match: str, tmp_path: Path
) -> None:
    (folder,) = make_family(config("mixtral"), experts=0)
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserMistake, match=match):
        compress(str(folder), 2, tmp_path / name, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_long_prompts_are_cut_and_that_is_said(make_family: Maker, tmp_path: Path) -> None:
    (folder,) = make_family(config("mixtral"), experts=0)
    (tmp_path / "long.txt").write_text("w4 w5\n" + "w7 " * 50, encoding="utf-8")
    remarks = compress(str(folder), 2, tmp_path / "long.txt", tmp_path / "small")
    assert remarks[0] == "1 prompts are longer than 32 tokens and were cut there"
