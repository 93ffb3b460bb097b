"""Statistics on calibration prompts against slow float64 references, and the operators that use them."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.errors import BadRecipe, NotEnoughRoom
from evomerge.export import read_recipe
from evomerge.merging import calibrations, exhibit, gradients, statistical
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.engine import MergeEngine
from evomerge.merging.export import open_merge, write_checkpoint
from evomerge.merging.observation import ensure
from evomerge.merging.opening import open_sources
from evomerge.merging.statistics import Statistic, Statistical, needs, read
from search_spaces.calibration import Calibration, Sample
from search_spaces.operators import Fisher, Rcp, RegMean, RegMeanPlus, TaskArithmetic
from search_spaces.recipe import Block, Blocks, Recipe, Source
from search_spaces.vocabulary import Vocabulary

EXPERTS, LAYERS = 2, 2
WEIGHTS = (0.3, 0.9)
SEEDS = st.integers(0, 1000)
LIGHT = settings(max_examples=15, deadline=None)


def calibration(seed: int = 0, *, samples: int = 3, vocabulary: int = 48) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    made = tuple(
        Sample(tokens=tuple(torch.randint(4, vocabulary, (5 + i,), generator=generator).tolist()), answer=2 + i % 3)
        for i in range(samples + 1)
    )
    return Calibration(samples=made, experts=(tuple(range(samples)), tuple(range(1, samples + 1))))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(kind: str) -> Any:
    common = {"vocab_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        return transformers.GPT2Config(**common, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=32)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "max_position_embeddings": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    if kind == "qwen3_moe":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8}
        return transformers.Qwen3MoeConfig(**common, **sizes, **heads, **experts)
    if kind == "gemma3":
        kinds = {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
        return transformers.Gemma3TextConfig(**common, **sizes, **heads, **kinds)
    return transformers.LlamaConfig(**common, **sizes, **heads)


@pytest.fixture(scope="module")
def families(make_family: Callable[..., list[Path]]) -> Callable[[str], list[Path]]:
    made: dict[str, list[Path]] = {}

    def of(kind: str) -> list[Path]:
        if kind not in made:
            made[kind] = make_family(config(kind), experts=EXPERTS, noise=0.05)
        return made[kind]

    return of


def recipe_of(folders: Sequence[Path], operator: Any, dtype: str = "float32") -> Recipe:
    sources = tuple(Source(path=str(folder)) for folder in folders)
    return Recipe(sources=sources, dtype=dtype, body=Blocks(blocks=(Block(layers=(0, 9), operator=operator),)))


def observed(folders: Sequence[Path], operator: Statistical, prompts: Calibration) -> tuple[Statistic, ...]:
    calibrations.keep(prompts)
    recipe = recipe_of(folders, operator)
    ensure(recipe, open_sources(folders, 0))
    return read(operator, recipe)


def double(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def linears(model: Any) -> dict[str, Any]:
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    found = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, kinds)}
    return {name: module for name, module in found.items() if "lm_head" not in name}


def seen_inputs(model: Any, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Tensor]:
    """All inputs of linear layers, float64 (tokens, inputs)."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        linears(model)[name].register_forward_pre_hook(
            lambda _, arguments, name=name: seen[name].append(arguments[0][0].detach())
        )
        for name in names
    ]
    for sample in samples:
        model(torch.tensor([sample.tokens]))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def shrunk(rows: Tensor, alpha: float) -> Tensor:
    gram = rows.T @ rows / len(rows)
    return alpha * gram + (1 - alpha) * torch.diag(torch.diag(gram))


# ---- the statistics


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_fisher_information_is_the_mean_squared_gradient(families: Callable[[str], list[Path]], kind: str) -> None:
    prompts = calibration()
    found = observed(families(kind), Fisher(weights=WEIGHTS, prompts=prompts.digest), prompts)
    for number, statistic in enumerate(found):
        model = double(families(kind)[number + 1])
        total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for sample in prompts.of_expert(number):
            logits = model(torch.tensor([sample.tokens])).logits[0, sample.answer - 1 : -1]
            likelihoods = torch.log_softmax(logits, -1)
            labels = gradients._drawn(sample, likelihoods.detach())
            model.zero_grad()
            likelihoods[range(len(labels)), labels].mean().backward()
            for name, parameter in model.named_parameters():
                total[name] += parameter.grad**2 / 3
        for name, expected in total.items():
            value = statistic.tensor(name).double()
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-7 * float(expected.max()))
        rms = torch.cat([value.flatten() for value in total.values()]).square().mean().sqrt()
        assert statistic.numbers["rms"] == pytest.approx(float(rms), rel=1e-4)


def test_stacked_experts_have_information_tensor_by_tensor(families: Callable[[str], list[Path]]) -> None:
    prompts = calibration()
    operator = Fisher(weights=WEIGHTS, prompts=prompts.digest)
    (first, _), folders = observed(families("qwen3_moe"), operator, prompts), families("qwen3_moe")
    model = double(folders[1]).float()  # grouped products know no float64
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for sample in prompts.of_expert(0):
        likelihoods = torch.log_softmax(model(torch.tensor([sample.tokens])).logits[0, sample.answer - 1 : -1], -1)
        labels = gradients._drawn(sample, likelihoods.detach())
        model.zero_grad()
        likelihoods[range(len(labels)), labels].mean().backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad**2 / 3
    up = torch.cat(
        [
            first.tensor(f"model.layers.1.mlp.experts.{i}.{part}_proj.weight")
            for i in range(4)
            for part in ("gate", "up")
        ]
    )
    stacked = total["model.layers.1.mlp.experts.gate_up_proj"].reshape(-1, 16)
    torch.testing.assert_close(up, stacked, rtol=1e-3, atol=1e-7 * float(stacked.max()))
    assert first.files.keys() == set(open_merge(recipe_of(folders, operator))[1].order)


def test_labels_are_drawn_from_the_models_distribution() -> None:
    likelihoods = torch.tensor([0.5, 0.3, 0.0, 0.2]).log().repeat(2000, 1)
    labels = gradients._drawn(Sample(tokens=(1, 2, 3), answer=1), likelihoods)
    shares = torch.bincount(labels, minlength=4) / 2000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.0, 0.2]), atol=0.04, rtol=0)
    assert torch.equal(labels, gradients._drawn(Sample(tokens=(1, 2, 3), answer=2), likelihoods))
    assert not torch.equal(labels, gradients._drawn(Sample(tokens=(1, 2, 4), answer=1), likelihoods))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_gram_matrices_are_those_of_what_enters(families: Callable[[str], list[Path]], kind: str) -> None:
    prompts = calibration()
    found = observed(families(kind), RegMean(weights=WEIGHTS, prompts=prompts.digest), prompts)
    for number, statistic in enumerate(found):
        model = double(families(kind)[number + 1])
        seen = seen_inputs(model, prompts.of_expert(number), list(linears(model)))
        assert statistic.files.keys() == seen.keys()
        for name, rows in seen.items():
            torch.testing.assert_close(statistic.tensor(name).double(), shrunk(rows, 1.0), rtol=1e-4, atol=1e-5)
        assert statistic.transposed == (set(seen) if kind == "gpt2" else set())
        layer = next(name for name in seen if "k_proj" in name) if kind != "gpt2" else None
        assert layer is None or statistic.files[layer] == statistic.files[layer.replace("k_proj", "q_proj")]


def test_little_memory_takes_several_passes(
    families: Callable[[str], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, folders = calibration(), families("llama")
    operator = RegMean(weights=WEIGHTS, prompts=prompts.digest)
    expected = [{name: s.tensor(name).clone() for name in s.files} for s in observed(folders, operator, prompts)]
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "again"))
    monkeypatch.setattr(exhibit.Exhibit, "room", lambda _: 2 * 4 * 24 * 24)
    calibrations.keep(prompts)
    told: list[tuple[int, int]] = []
    recipe, sources = recipe_of(folders, operator), open_sources(folders, 0)
    ensure(recipe, sources, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] and len(told) > 2 * EXPERTS * 3
    for before, now in zip(expected, read(operator, recipe), strict=True):
        assert all(torch.equal(before[name], now.tensor(name)) for name in now.files)
    monkeypatch.setattr(exhibit.Exhibit, "room", lambda _: 1000)
    last = calibration(2)
    calibrations.keep(last)
    for kind in (RegMean, Fisher):
        with pytest.raises(NotEnoughRoom, match="are available"):
            ensure(recipe_of(folders, kind(weights=WEIGHTS, prompts=last.digest)), sources)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_regmean_plus_runs_each_layer_behind_merged_ones(families: Callable[[str], list[Path]], kind: str) -> None:
    prompts, alpha = calibration(), 0.7
    operator = RegMeanPlus(weights=WEIGHTS, prompts=prompts.digest, off_diagonal=alpha)
    found = observed(families(kind), operator, prompts)
    base, *experts = (double(folder) for folder in families(kind))
    states = [{name: p.detach() for name, p in model.named_parameters()} for model in (base, *experts)]
    mean = {name: sum(state[name] for state in states[1:]) / EXPERTS for name in states[0]}
    merged = double(families(kind)[0])
    merged.load_state_dict(mean, strict=False)
    marks = [f".{'h' if kind == 'gpt2' else 'layers'}.{layer}." for layer in range(LAYERS)]
    for mark in marks:
        names = [name for name in linears(merged) if mark in name]
        grams: list[dict[str, Tensor]] = []
        for number, state in enumerate(states[1:]):
            merged.load_state_dict({name: value for name, value in state.items() if mark in name}, strict=False)
            seen = seen_inputs(merged, prompts.of_expert(number), names)
            grams.append({name: shrunk(rows, alpha) for name, rows in seen.items()})
            for name, rows in seen.items():
                plain = shrunk(rows, 1.0)
                torch.testing.assert_close(found[number].tensor(name).double(), plain, rtol=1e-3, atol=1e-5)
        best = {name: mean[name] for name in mean if mark in name}
        for name in names:
            ridge = sum(float(gram[name].diagonal().mean()) for gram in grams) / EXPERTS * 1e-6
            own = [gram[name] + ridge * torch.eye(len(gram[name])) for gram in grams]
            turn = (lambda t: t) if kind == "gpt2" else (lambda t: t.T)
            right = sum(gram @ turn(state[name]) for gram, state in zip(own, states[1:], strict=True))
            best[name] = turn(torch.linalg.solve(sum(own), right))
        merged.load_state_dict(best, strict=False)
    # weights of 1 / K give this very merge
    recipe = recipe_of(families(kind), operator.model_copy(update={"weights": (0.5, 0.5)}))
    sources, engine = open_merge(recipe)
    for name, expected in merged.named_parameters():
        if name in engine.order:
            torch.testing.assert_close(engine.merge_tensor(recipe, name).double(), expected, rtol=1e-3, atol=1e-4)
    assert len(sources) == EXPERTS + 1


def test_votes_weigh_the_loss_of_one_against_the_information_of_the_other(
    families: Callable[[str], list[Path]],
) -> None:
    prompts = calibration()
    operator = Rcp(weights=WEIGHTS, prompts=prompts.digest, source=1, protection=50.0)
    information, votes = observed(families("llama"), operator, prompts)
    kept, model = double(families("llama")[1]), double(families("llama")[2])
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    close = dict(expected)
    for sample in prompts.of_expert(1):
        model.zero_grad()
        logits = model(torch.tensor([sample.tokens])).logits[0, sample.answer - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(sample.tokens[sample.answer :])).backward()
        for (name, own), other in zip(model.named_parameters(), kept.parameters(), strict=True):
            score = own.grad * own + 50.0 * information.tensor(name).double() * (other - own) ** 2
            expected[name] = expected[name] + torch.where(score <= 0, 1.0, -1.0)
            close[name] = close[name] + (score.abs() < 1e-9)
    different = total = 0
    for name, value in expected.items():
        different += int((votes.tensor(name) != value)[close[name] == 0].sum())
        total += value.numel()
    assert different <= 1e-4 * total
    positive = sum(int((votes.tensor(name) > 0).sum()) for name in votes.files)
    assert 0.05 * total < positive < 0.95 * total


# ---- from statistics to virtual task vectors


def matrices(seed: int, *shape: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@given(seed=SEEDS, exponent=st.floats(0.1, 1))
@LIGHT
def test_fisher_vectors(seed: int, exponent: float) -> None:
    taus, information = matrices(seed, 4, 5), [each.square() for each in matrices(seed + 1, 4, 5)]
    found = torch.stack(statistical.fisher(taus, information, exponent))
    shares = torch.stack(information).add(1e-6) ** exponent
    torch.testing.assert_close(found, 3 * torch.stack(taus) * shares / shares.sum(0), rtol=1e-12, atol=0)
    equal = statistical.fisher(taus, [information[0]] * 3, exponent)
    torch.testing.assert_close(torch.stack(equal), torch.stack(taus), rtol=1e-12, atol=1e-15)
    nothing = statistical.fisher(taus, [torch.zeros(4, 5)] * 3, exponent)
    torch.testing.assert_close(torch.stack(nothing), torch.stack(taus), rtol=1e-12, atol=1e-15)


@given(seed=SEEDS, base=SEEDS)
@LIGHT
def test_regmean_is_the_least_squares_solution(seed: int, base: int) -> None:
    """min_W sum_i |X_i W^T - X_i W_i^T|^2 / n_i, by a solver that knows nothing of Gram matrices."""
    (start,) = matrices(base, 4, 5, count=1)
    weights, inputs = matrices(seed, 4, 5), matrices(seed + 1, 40, 5)
    rows = [each * scale for each, scale in zip(inputs, (1.0, 3.0, 0.2), strict=True)]
    grams = [each.T @ each / len(each) for each in rows]
    found = start + torch.stack(statistical.regmean([w - start for w in weights], grams, 1.0)).mean(0)
    targets = torch.cat([x @ w.T for x, w in zip(rows, weights, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(rows), targets).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@given(seed=SEEDS, alpha=st.floats(0, 1))
@LIGHT
def test_equal_grams_are_task_arithmetic_and_dead_inputs_do_no_harm(seed: int, alpha: float) -> None:
    taus, (rows,) = matrices(seed, 4, 5), matrices(seed + 1, 3, 5, count=1)
    rows[:, 2] = 0.0
    gram = rows.T @ rows
    for grams in ([gram] * 3, [torch.zeros(5, 5)] * 3):
        found = torch.stack(statistical.regmean(taus, grams, alpha))
        torch.testing.assert_close(found, torch.stack(taus), rtol=1e-5, atol=1e-5)


# ---- recipes


OPERATORS = [
    lambda digest: Fisher(weights=WEIGHTS, prompts=digest, exponent=0.5, scale=1.1),
    lambda digest: RegMean(weights=WEIGHTS, prompts=digest, scale=1.1),
    lambda digest: RegMeanPlus(weights=WEIGHTS, prompts=digest, scale=1.1),
    lambda digest: Rcp(weights=WEIGHTS, prompts=digest, source=2, scale=1.1),
]


@pytest.mark.parametrize("make", OPERATORS, ids=lambda make: make("0" * 64).kind)
def test_recipes_add_virtual_vectors_linearly(families: Callable[[str], list[Path]], make: Any) -> None:
    prompts, folders = calibration(), families("llama")
    calibrations.keep(prompts)
    recipe = recipe_of(folders, make(prompts.digest))
    checkpoints, engine = open_merge(recipe)

    def merged(weights: tuple[float, float], name: str) -> Tensor:
        operator = make(prompts.digest).model_copy(update={"weights": weights})
        return engine.merge_tensor(recipe_of(folders, operator), name).double()

    plain = recipe_of(folders, TaskArithmetic(weights=WEIGHTS, scale=1.1))
    differs = 0
    for name in engine.order:
        base = checkpoints[0].tensor(name).double()
        one, two = merged((1.0, 0.0), name) - base, merged((0.0, 1.0), name) - base
        both = merged(WEIGHTS, name)
        torch.testing.assert_close(both, base + 0.3 * one + 0.9 * two, rtol=0, atol=2e-6)
        same = torch.allclose(both, engine.merge_tensor(plain, name).double(), rtol=0, atol=1e-6)
        differs += not same
        covered = recipe.body.blocks[0].operator.kind in ("fisher", "rcp") or "_proj" in name  # type: ignore[union-attr]
        assert same or covered, name
    assert differs > len(engine.order) // 3


@pytest.mark.parametrize("make", OPERATORS, ids=lambda make: make("0" * 64).kind)
def test_a_recipe_is_rebuilt_from_the_prompts_beside_it(
    families: Callable[[str], list[Path]], make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = calibration(5)
    calibrations.keep(prompts)
    first = write_checkpoint(recipe_of(families("llama"), make(prompts.digest)), tmp_path / "first")
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "elsewhere"))
    again = write_checkpoint(read_recipe(first / "recipe.json"), tmp_path / "again")
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "third"))
    (record,) = again.glob("calibration-*.json")
    text = record.read_text()
    record.write_text(text.replace('"answer":2', '"answer":1', 1))
    with pytest.raises(BadRecipe, match="damaged, or not the calibration prompts"):
        read_recipe(again / "recipe.json")
    record.unlink()
    with pytest.raises(BadRecipe, match=f"put calibration-{prompts.digest[:16]}.json beside"):
        write_checkpoint(read_recipe(again / "recipe.json"), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_limit_of_memory_refuses_to_compute_statistics_and_allows_to_use_them(
    families: Callable[[str], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    prompts = calibration()
    calibrations.keep(prompts)
    recipe = recipe_of(families("llama"), Fisher(weights=WEIGHTS, prompts=prompts.digest))
    with pytest.raises(NotEnoughRoom, match="merge once without the limit"):
        open_merge(recipe, memory_limit=8 << 30)
    assert not list((tmp_path / "cache" / "statistics").glob("*"))
    open_merge(recipe)
    open_merge(recipe, memory_limit=8 << 30)


def test_in_one_vocabulary_a_statistic_follows_from_all_sources() -> None:
    """The rows that an expert has in the union of all tokens are others beside another expert."""
    prompts, operator = calibration(), Fisher(weights=WEIGHTS, prompts="0" * 64)

    def first_key(other: str, vocabulary: Vocabulary | None) -> str:
        recipe = recipe_of([Path("base"), Path("one"), Path(other)], operator)
        sources = tuple(each.model_copy(update={"digest": each.path[0] * 64}) for each in recipe.sources)
        recipe = recipe.model_copy(update={"sources": sources, "vocabulary": vocabulary})
        return needs(operator, recipe, prompts)[0].key

    union = Vocabulary(source="union")
    assert first_key("cc", None) == first_key("dd", None)
    assert len({first_key("cc", None), first_key("cc", union), first_key("dd", union)}) == 3


def test_what_does_not_fit_is_refused(families: Callable[[str], list[Path]]) -> None:
    prompts = calibration()
    calibrations.keep(prompts)
    operator = Fisher(weights=(1.0,), prompts=prompts.digest)
    with pytest.raises(BadRecipe, match="are for 2 experts, the recipe has 1"):
        open_merge(recipe_of(families("llama")[:2], operator))
    strange = calibration(vocabulary=400)
    calibrations.keep(strange)
    with pytest.raises(BadRecipe, match="the vocabulary has 48"):
        open_merge(recipe_of(families("llama"), Fisher(weights=WEIGHTS, prompts=strange.digest)))
    checkpoints = open_sources(families("llama"), 0)
    engine = MergeEngine(checkpoints, names=mergeable_names(checkpoints[0]))
    with pytest.raises(BadRecipe, match="are not there"):
        engine.merge_tensor(
            recipe_of(families("llama"), RegMean(weights=WEIGHTS, prompts=prompts.digest)), engine.order[0]
        )


def test_statistics_follow_from_models_prompts_and_kind(families: Callable[[str], list[Path]]) -> None:
    one, two = calibration(0), calibration(0, samples=2)
    llama, other = families("llama"), families("gpt2")
    keys: set[str] = set()
    for prompts, folders, make in product((one, two), (llama, other), OPERATORS):
        operator: Any = make(prompts.digest)
        keys |= {need.key for need in needs(operator, recipe_of(folders, operator), prompts)}
    # Rcp shares the Fisher information of the expert that it keeps with Fisher
    assert len(keys) == 2 * 2 * (2 + 2 + 2 + 1)


def test_calibration_records() -> None:
    prompts = calibration()
    assert Calibration.model_validate_json(prompts.to_json()).digest == prompts.digest
    assert calibration(1).digest != prompts.digest
    by_task = {"a": prompts.samples[:1], "b": prompts.samples[1:]}
    made = Calibration.of(by_task, [("b",), ("a", "b")])
    assert made.experts == ((1, 2, 3), (0, 1, 2, 3)) and made.of_expert(0) == prompts.samples[1:]
    for bad in (((9,),), ((),)):
        with pytest.raises(ValueError, match="needs positions among"):
            Calibration(samples=prompts.samples, experts=bad)
    with pytest.raises(ValueError, match="there is none"):
        Sample(tokens=(1, 2), answer=2)
