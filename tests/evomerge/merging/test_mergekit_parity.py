"""Whole checkpoints, tensor by tensor, against mergekit 0.1.5 in an environment of its own."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
import yaml
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from evomerge.merging.aligned import by_token
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.engine import MergeEngine
from evomerge.merging.export import write_checkpoint
from evomerge.merging.mergekit_config import from_mergekit, to_mergekit
from search_spaces.operators import Karcher, Linear, Operator, Passthrough, Slerp, TaskArithmetic, Ties
from search_spaces.recipe import Block, Recipe

PYTHON = os.environ.get("EVOMERGE_MERGEKIT_PYTHON")
DRIVER = Path(__file__).parent / "mergekit_driver.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.mergekit,
    pytest.mark.skipif(
        not PYTHON, reason="EVOMERGE_MERGEKIT_PYTHON does not name the Python of an environment with mergekit 0.1.5"
    ),
]
T1, T2, T3 = (
    TaskArithmetic(weights=(0.4, -0.2, 0.7), scale=1.5),
    TaskArithmetic(weights=(0.1, 0.2, 0.3)),
    TaskArithmetic(weights=(0.5, 0.3, 0), normalize=True),
)

CONFIGS = {
    "linear": """
        merge_method: linear
        models: [{model: M1, parameters: {weight: 0.3}}, {model: M2, parameters: {weight: 1}}]
    """,
    "linear-plain": """
        merge_method: linear
        base_model: M0
        models: [{model: M1, parameters: {weight: [0.3, 0.9]}}, {model: M2, parameters: {weight: -0.2}}]
        parameters: {normalize: false, weight: 0.25}
    """,
    "slerp": """
        merge_method: slerp
        base_model: M0
        models: [{model: M0}, {model: M1}]
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - value: [0.2, 0.9]
    """,
    "slerp-slices": """
        merge_method: slerp
        base_model: M1
        slices:
          - sources: [{model: M1, layer_range: [0, 1]}, {model: M2, layer_range: [0, 1]}]
            parameters: {t: [0.1, 0.8]}
          - sources: [{model: M1, layer_range: [1, 4]}, {model: M3, layer_range: [1, 4]}]
            parameters: {t: [{filter: lm_head, value: 0.6}, {value: [0.3, 0.5]}]}
    """,
    "slerp-of-far-models": """
        merge_method: slerp
        base_model: M0
        models: [{model: F1}]
        parameters: {t: [0.2, 0.9]}
    """,
    "task_arithmetic": """
        merge_method: task_arithmetic
        base_model: M0
        models:
          - {model: M1, parameters: {weight: [0.1, 0.9, 0.2]}}
          - {model: M2, parameters: {weight: [{filter: up_proj, value: 0.6}, {filter: "*", value: -0.1}]}}
          - {model: M3, parameters: {weight: 0.3}}
        parameters: {lambda: [{filter: norm, value: 0.3}, {value: [1.2, 0.7]}], normalize: false}
    """,
    "task_arithmetic-normalized": """
        merge_method: task_arithmetic
        base_model: M0
        models: [{model: M1, parameters: {weight: 1.1}}, {model: M2, parameters: {weight: -0.4}}]
        parameters: {normalize: true}
    """,
    "ties": """
        merge_method: ties
        base_model: M0
        models:
          - {model: M1, parameters: {weight: 0.5, density: 0.37}}
          - {model: M2, parameters: {weight: [0.3, 0.8], density: [{filter: mlp, value: 0.2}, {value: 0.6}]}}
          - {model: M3, parameters: {weight: 0.7, density: 1.0}}
        parameters: {int8_mask: true}
    """,
    "ties-signed": """
        merge_method: ties
        base_model: M0
        models:
          - {model: M1, parameters: {weight: 0.5, density: 0.5}}
          - {model: M2, parameters: {weight: -0.8, density: 0.25}}
          - {model: M3, parameters: {weight: 0.7, density: 0.01}}
        parameters: {normalize: [false, true], lambda: 0.8}
    """.replace("[false, true]", "false"),
    "ties-slices": """
        merge_method: ties
        base_model: M0
        slices:
          - sources:
              - {model: M0, layer_range: [0, 3]}
              - {model: M1, layer_range: [0, 3], parameters: {weight: [0.2, 0.9]}}
              - {model: M2, layer_range: [0, 3], parameters: {weight: {filter: mlp, value: 0.4}}}
            parameters: {weight: 0.25, density: 0.5}
          - sources:
              - {model: M3, layer_range: [3, 4], parameters: {weight: [0.2, 0.9]}}
              - {model: M0, layer_range: [3, 4]}
        parameters: {normalize: true, density: 0.75}
    """,
    "dare-without-dropping": """
        merge_method: dare_ties
        base_model: M0
        models:
          - {model: M1, parameters: {weight: 0.5, density: 1.0}}
          - {model: M2, parameters: {weight: 0.8}}
          - {model: M3, parameters: {weight: -0.7, density: 0.0}}
    """,
    "dare-linear-without-dropping": """
        merge_method: dare_linear
        base_model: M0
        models: [{model: M1, parameters: {weight: 0.5, density: 1}}, {model: M2, parameters: {weight: 0.8}}]
        parameters: {normalize: true, lambda: 0.9}
    """,
    "breadcrumbs": """
        merge_method: breadcrumbs
        base_model: M0
        models:
          - {model: M1, parameters: {weight: 0.5, density: 0.37, gamma: 0.1}}
          - {model: M2, parameters: {weight: [0.3, 0.8], density: [{filter: mlp, value: 0.2}, {value: 0.6}]}}
          - {model: M3, parameters: {weight: -0.7, density: 0.9, gamma: 0.3}}
        parameters: {lambda: 0.8}
    """,
    "breadcrumbs-rescaled": """
        merge_method: breadcrumbs
        base_model: M0
        models: [{model: M1, parameters: {weight: 0.5, density: 0.1}}, {model: M2, parameters: {weight: 1, gamma: 0}}]
        parameters: {normalize: true, rescale: true, density: 0.5, gamma: 0.07}
    """,
    "breadcrumbs_ties": """
        merge_method: breadcrumbs_ties
        base_model: M0
        models:
          - {model: M1, parameters: {weight: 0.5, density: 0.37, gamma: 0.1}}
          - {model: M2, parameters: {weight: -0.4, density: 0.6}}
          - {model: M3, parameters: {weight: 0.7, density: 1.0, gamma: 0.3}}
    """,
    "della-without-dropping": """
        merge_method: della
        base_model: M0
        models:
          - {model: M1, parameters: {weight: 0.5, density: 1.0}}
          - {model: M2, parameters: {weight: 0.8}}
          - {model: M3, parameters: {weight: 0.7, density: 0.0}}
    """,
    "sce": """
        merge_method: sce
        base_model: M0
        models: [{model: M1}, {model: M2}, {model: M3}]
        parameters: {select_topk: [0.2, 0.9], int8_mask: true}
    """,
    "sce-of-everything": """
        merge_method: sce
        base_model: C0
        models: [{model: C1}, {model: C3}]
    """,
    "nuslerp": """
        merge_method: nuslerp
        base_model: C0
        models: [{model: C1, parameters: {weight: [0.1, 0.9]}}, {model: C2, parameters: {weight: 0.5}}]
    """,
    "multislerp": """
        merge_method: multislerp
        base_model: C0
        models:
          - {model: C1, parameters: {weight: [0.1, 0.9]}}
          - {model: C2, parameters: {weight: 0.5}}
          - {model: C3, parameters: {weight: -0.2}}
    """,
    "multislerp-plain": """
        merge_method: multislerp
        base_model: M0
        models: [{model: M1, parameters: {weight: 0.9}}, {model: M3, parameters: {weight: 0.4}}]
        parameters: {normalize_weights: false}
    """,
    "model_stock": """
        merge_method: model_stock
        base_model: C0
        models: [{model: C1}, {model: C2}, {model: C3}]
        parameters: {filter_wise: false}
    """,
    "model_stock-rows": """
        merge_method: model_stock
        base_model: C0
        models: [{model: C1}, {model: C2}, {model: C3}]
        parameters: {filter_wise: true}
    """,
    "nuslerp-rows": """
        merge_method: nuslerp
        base_model: C0
        models: [{model: C1, parameters: {weight: [0.1, 0.9]}}, {model: C2, parameters: {weight: 0.5}}]
        parameters: {nuslerp_flatten: false}
    """,
    "nuslerp-columns": """
        merge_method: nuslerp
        base_model: C0
        models: [{model: C1, parameters: {weight: 0.3}}, {model: C2, parameters: {weight: 0.5}}]
        parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}
    """,
    "karcher": """
        merge_method: karcher
        models: [{model: M1}, {model: M2}, {model: M3}]
    """,
    "karcher-with-base": """
        merge_method: karcher
        base_model: M0
        models: [{model: F1}, {model: M2}]
        parameters: {max_iter: 50, tol: 1e-6}
    """,
    "passthrough": """
        merge_method: passthrough
        slices:
          - sources: [{model: M1, layer_range: [0, 1], parameters: {scale: [{filter: mlp, value: 0.5}, {value: 1}]}}]
          - sources: [{model: M2, layer_range: [1, 4]}]
    """,
    "nearswap": """
        merge_method: nearswap
        base_model: M0
        models: [{model: M1}]
        parameters: {t: [0.001, 0.02]}
    """,
    "ram": """
        merge_method: ram
        base_model: M0
        models: [{model: M1}, {model: M2}, {model: M3}]
        parameters: {epsilon: [0.001, 0.01]}
    """,
    "ramplus_tl": """
        merge_method: ramplus_tl
        base_model: M0
        models: [{model: M1}, {model: M2}, {model: M3}]
        parameters: {epsilon: 0.01, r: 0.4, alpha: [0.2, 5]}
    """,
    "tokenizer": """
        merge_method: task_arithmetic
        base_model: M0
        models: [{model: M1, parameters: {weight: 0.4}}]
        tokenizer_source: M2
    """,
    "qwen2": """
        merge_method: ties
        base_model: Q0
        models:
          - {model: Q1, parameters: {weight: 0.5, density: [{filter: mlp, value: 0.4}, {value: 0.9}]}}
          - {model: Q2, parameters: {weight: [0.1, 0.9]}}
    """,
    "tied": """
        merge_method: slerp
        base_model: T0
        slices:
          - sources: [{model: T0, layer_range: [0, 1]}, {model: T1, layer_range: [0, 1]}]
            parameters: {t: 0.2}
          - sources: [{model: T0, layer_range: [1, 2]}, {model: T1, layer_range: [1, 2]}]
            parameters: {t: 0.7}
    """,
}  # fmt: skip
RECIPES: dict[str, Operator | list[Block]] = {
    "linear": Linear(weights=(1, 2, 0.5, -0.3)),
    "slerp": Slerp(between=(2, 0), t=0.3),
    "pairs": [
        Block(layers=(0, 2), operator=Slerp(between=(0, 2), t=0.3)),
        Block(layers=(2, 4), operator=Slerp(between=(3, 0), t=0.25)),
    ],
    "layers-and-tensors": [
        Block(layers=(1, 3), tensors=("*mlp*",), operator=T1),
        Block(layers=(0, 4), tensors=("*self_attn.[qk]_proj*", "lm_head.weight"), operator=T3),
        Block(layers=(0, 4), tensors=("model.norm.weight",), operator=T1),
        Block(layers=(0, 4), operator=T2),
    ],
    "karcher": [
        Block(layers=(0, 2), operator=Karcher(weights=(0, 1, 0, 1))),
        Block(layers=(2, 4), operator=Karcher(weights=(2, 0, 2, 0))),
    ],
    "passthrough": [
        Block(layers=(0, 1), operator=Passthrough(source=2, scale=0.5)),
        Block(layers=(1, 4), operator=Passthrough(source=1)),
    ],
    "ties": [
        Block(layers=(0, 2), operator=Ties(weights=(0.4, 0.3, 0.7), densities=(0.3, 0.5, 0.9), scale=0.8)),
        Block(layers=(2, 4), operator=Ties(weights=(0.4, -0.3, 0.7), densities=(0.3, 0, 0.9), normalize=False)),
    ],
}


def run_mergekit(configs: dict[str, str], root: Path) -> dict[str, Path]:
    jobs = []
    for name, text in configs.items():
        (root / f"{name}.yml").write_text(text)
        jobs.append([str(root / f"{name}.yml"), str(root / name)])
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(PYTHON), str(DRIVER), str(root / "jobs.json")],
        env=environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: root / name for name in configs}


@pytest.fixture(scope="module")
def places(family: list[Path], make_family: Callable[..., list[Path]]) -> dict[str, Path]:
    small = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    qwen2 = make_family(transformers.Qwen2Config(**small, num_key_value_heads=2, num_hidden_layers=3), experts=2)
    tied = transformers.LlamaConfig(**small, num_hidden_layers=2, tie_word_embeddings=True)
    return {
        **{f"M{i}": folder for i, folder in enumerate(family)},
        **{f"Q{i}": folder for i, folder in enumerate(qwen2)},
        **{f"T{i}": folder for i, folder in enumerate(make_family(tied, experts=1, noise=0.02))},
        "F1": make_family(experts=1, noise=0.08)[1],
        **{f"C{i}": folder for i, folder in enumerate(make_family(common=0.02))},  # task vectors that agree
    }


def written(text: str, places: dict[str, Path], dtype: str) -> str:
    for short, folder in places.items():
        text = text.replace(f"{short}}}", f"{folder}}}").replace(f"{short},", f"{folder},")
        text = text.replace(f"{short}\n", f"{folder}\n")
    lines = text.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join([*(line[indent:] for line in lines), "dtype: float32", f"out_dtype: {dtype}", ""])


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def configs(
    request: pytest.FixtureRequest, places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, Path]]:
    texts = {name: written(text, places, request.param) for name, text in CONFIGS.items()}
    folders = run_mergekit(texts, tmp_path_factory.mktemp("mergekit"))
    return {name: (texts[name], folders[name]) for name in texts}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def recipes(
    request: pytest.FixtureRequest, recipe_of: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Recipe, Path]]:
    made = {name: recipe_of(what, dtype=request.param) for name, what in RECIPES.items()}
    texts = {name: to_mergekit(recipe) for name, recipe in made.items()}
    folders = run_mergekit(texts, tmp_path_factory.mktemp("mergekit"))
    return {name: (made[name], folders[name]) for name in made}


def assert_same(recipe: Recipe, folder: Path) -> None:
    """Equal to within one rounding of the output's dtype, measured at the size of what was added up.

    In float32 both sides round at every step, mergekit also in the angle of slerp: 8 roundings are granted there.
    """
    checkpoints = [Checkpoint.open(Path(source.path)) for source in recipe.sources]
    names = mergeable_names(checkpoints[0])
    engine = MergeEngine(checkpoints, names=names)
    theirs = Checkpoint.open(folder)
    assert set(theirs.names) == set(names)
    roundings = 8 if recipe.dtype == "float32" else 1
    for name in names:
        ours, other = engine.merge_tensor(recipe, name), theirs.tensor(name)
        assert other.dtype is ours.dtype
        sizes = [checkpoint.tensor(name).abs() for checkpoint in checkpoints]
        largest = torch.stack([*sizes, ours.abs().float(), other.abs().float()]).amax(0)
        error = (ours.float() - other.float()).abs() / (torch.finfo(ours.dtype).eps * largest)
        assert error.max() <= roundings, f"{name}: {error.max():.1f} roundings apart"
        if recipe.dtype != "float32":
            assert (ours != other).sum() <= 1 + 0.002 * ours.numel(), f"{name}: too many roundings differ"


@pytest.mark.parametrize("name", CONFIGS)
def test_their_config_gives_our_merge(configs: dict[str, tuple[str, Path]], name: str) -> None:
    text, folder = configs[name]
    assert_same(from_mergekit(text), folder)


@pytest.mark.parametrize("name", RECIPES)
def test_our_recipe_gives_their_merge(recipes: dict[str, tuple[Recipe, Path]], name: str) -> None:
    assert_same(*recipes[name])


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_random_masks_have_their_distribution(
    method: str, recipe_of: Callable[..., Recipe], places: dict[str, Path], tmp_path: Path
) -> None:
    """The share of elements moved, and the L1 norm of the change, per tensor; the draws themselves differ."""
    text = f"""
        merge_method: {method}
        base_model: M0
        models: [{{model: M1, parameters: {{weight: 0.7, density: 0.4}}}}]
    """
    text = written(text, places, "float32")
    theirs = Checkpoint.open(run_mergekit({"dare": text}, tmp_path)["dare"])
    recipe = from_mergekit(text)
    checkpoints = [Checkpoint.open(Path(source.path)) for source in recipe.sources]
    engine = MergeEngine(checkpoints, names=checkpoints[0].names)
    for name in engine.order:
        base = checkpoints[0].tensor(name)
        ours, other = engine.merge_tensor(recipe, name) - base, theirs.tensor(name) - base
        deviation = (0.4 * 0.6 / base.numel()) ** 0.5
        for change in (ours, other):
            assert abs((change != 0).double().mean().item() - 0.4) < 5 * deviation + 1 / base.numel()
        torch.testing.assert_close(ours.abs().sum(), other.abs().sum(), rtol=1e-3, atol=1e-6)


def test_arcee_fusion_differs_only_near_the_fence(places: dict[str, Path], tmp_path: Path) -> None:
    """mergekit's divergence of rows is float32, which leaves it three or four digits; all else is equal."""
    text = written("merge_method: arcee_fusion\nbase_model: M0\nmodels: [{model: F1}]", places, "float32")
    theirs = Checkpoint.open(run_mergekit({"arcee": text}, tmp_path)["arcee"])
    recipe = from_mergekit(text)
    assert from_mergekit(to_mergekit(recipe)) == recipe
    checkpoints = [Checkpoint.open(Path(source.path)) for source in recipe.sources]
    engine = MergeEngine(checkpoints, names=checkpoints[0].names)
    differing = sum(int((engine.merge_tensor(recipe, n) != theirs.tensor(n)).sum()) for n in engine.order)
    taken = sum(int((theirs.tensor(n) != checkpoints[0].tensor(n)).sum()) for n in engine.order)
    assert taken > 1000
    assert differing < 0.01 * taken


def test_where_mergekit_loses_model_stock_ours_is_the_formula(
    make_family: Callable[..., list[Path]], tmp_path: Path
) -> None:
    """Task vectors as short as those of reinforcement learning: mergekit takes the cosine of norms for zero."""
    folders = make_family(noise=1e-6, common=1e-5)
    text = "\n".join(
        [
            "merge_method: model_stock",
            f"base_model: {folders[0]}",
            f"models: [{{model: {folders[1]}}}, {{model: {folders[2]}}}]",
            "dtype: float32\n",
        ]
    )
    theirs = Checkpoint.open(run_mergekit({"stock": text}, tmp_path)["stock"])
    checkpoints = [Checkpoint.open(folder) for folder in folders[:3]]
    engine = MergeEngine(checkpoints, names=checkpoints[0].names)
    name = "model.norm.weight"
    base, one, two = (checkpoint.tensor(name).double() for checkpoint in checkpoints)
    mean = (one + two) / 2 - base
    cosine = torch.nn.functional.cosine_similarity(one - base, two - base, dim=0).item()
    share = 2 * cosine / (1 + cosine)

    def moved(tensor: torch.Tensor) -> float:
        return ((tensor.double() - base) @ mean / (mean @ mean)).item()

    assert share > 0.9
    assert abs(moved(engine.merge_tensor(from_mergekit(text), name)) - share) < 0.02
    assert moved(theirs.tensor(name)) < 0.1


VOCABULARIES = {
    "union": "tokenizer_source: union",
    "base": "tokenizer_source: base",
    "expert": "tokenizer_source: V2",
    "padded": "tokenizer: {source: union, pad_to_multiple_of: 8}",
    "rows": """tokenizer:
  source: union
  tokens:
    <tool>: {source: {kind: model_token, model: V2, token: w9}}
    w5: {source: V1, force: true}
    other: {source: {kind: zero}}
    new: {source: {kind: model_token, model: V1, token_id: 49}}
""",
}


@pytest.fixture(scope="module")
def of_strangers(strangers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """Configs of models with different tokens, and what mergekit makes of them."""
    texts = {}
    for name, lines in VOCABULARIES.items():
        text = f"""merge_method: task_arithmetic
base_model: V0
models: [{{model: V1, parameters: {{weight: 0.4}}}}, {{model: V2, parameters: {{weight: 0.7}}}}]
dtype: float32
{lines}
"""
        for number, folder in enumerate(strangers):
            text = text.replace(f"V{number}", str(folder))
        texts[name] = text
    folders = run_mergekit(texts, tmp_path_factory.mktemp("mergekit"))
    return {name: (texts[name], folders[name]) for name in texts}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vocabularies(
    of_strangers: dict[str, tuple[str, Path]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token: mergekit numbers new tokens in the order of a hash table."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    text, folder = of_strangers[name]
    to = write_checkpoint(from_mergekit(text), tmp_path / "ours")
    ours, theirs = Checkpoint.open(to), Checkpoint.open(folder)
    words, others = (transformers.AutoTokenizer.from_pretrained(place).get_vocab() for place in (to, folder))
    assert set(words) == set(others)
    assert set(ours.names) == set(theirs.names)
    order = torch.tensor([others[token] for token in sorted(words, key=words.__getitem__)])
    for tensor in ours.names:
        mine, its = ours.tensor(tensor), theirs.tensor(tensor)
        assert mine.shape == its.shape
        if by_token(tensor):
            its = torch.cat([its[order], its[len(order) :]])
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=2e-7)


SHARES, FACTORS = st.integers(1, 20).map(lambda n: n / 20), st.integers(1, 24).map(lambda n: n / 20)
PLACES = ("self_attn", "mlp", "norm", "q_proj", "down_proj.weight", "embed_tokens", "lm_head", "layers.2.")
METHODS_OF = {  # of the parameters that all share, and of those that each model has
    "linear": ({"normalize": st.booleans()}, {"weight": FACTORS}),
    "slerp": ({"t": SHARES}, {}),
    "task_arithmetic": ({"lambda": FACTORS, "normalize": st.booleans()}, {"weight": FACTORS}),
    "ties": ({"lambda": FACTORS, "normalize": st.booleans()}, {"weight": FACTORS, "density": SHARES}),
    "breadcrumbs": ({"rescale": st.booleans()}, {"weight": FACTORS, "density": SHARES, "gamma": st.just(0.1)}),
    "breadcrumbs_ties": ({"lambda": FACTORS}, {"weight": FACTORS, "density": SHARES, "gamma": st.just(0.1)}),
    "multislerp": ({"normalize_weights": st.booleans()}, {"weight": FACTORS}),
    "ram": ({"epsilon": st.sampled_from([0.001, 0.01])}, {}),
    "nearswap": ({"t": st.sampled_from([0.001, 0.004, 0.02])}, {}),
    "karcher": ({}, {}),
}
MODELS_OF = {"slerp": 1, "nearswap": 1, "multislerp": 3, "karcher": 3}


def anyhow(value: st.SearchStrategy) -> st.SearchStrategy:
    """A parameter as mergekit takes it: a number, a gradient over the layers, or either by filters."""
    plain = value | st.lists(value.filter(lambda v: not isinstance(v, bool)), min_size=2, max_size=4)
    filtered = st.lists(st.fixed_dictionaries({"filter": st.sampled_from(PLACES), "value": plain}), max_size=2)
    return plain | st.tuples(filtered, plain).map(lambda both: [*both[0], {"value": both[1]}])


def parameters(known: dict[str, st.SearchStrategy], kind: Callable = anyhow) -> st.SearchStrategy:
    return st.fixed_dictionaries({name: kind(value) for name, value in known.items()})


@st.composite
def random_configs(draw: st.DrawFn) -> dict:
    method = draw(st.sampled_from(sorted(METHODS_OF)))
    shared, each = METHODS_OF[method]
    steady = {name: value for name, value in shared.items() if name.startswith(("normalize", "rescale"))}
    moving = {name: value for name, value in shared.items() if name not in steady}
    count = MODELS_OF.get(method) or draw(st.integers(1, 3))
    models = [f"M{number}" for number in draw(st.permutations([1, 2, 3]))[:count]]
    value = {"merge_method": method, "dtype": "float32", "out_dtype": draw(st.sampled_from(["float32", "bfloat16"]))}
    if method != "karcher":
        value["base_model"] = "M0"
    if draw(st.booleans()):
        value["models"] = [{"model": model, "parameters": draw(parameters(each))} for model in models]
        if method == "linear":
            value["models"].append({"model": "M0", "parameters": draw(parameters(each))})
    else:
        cuts = [0, *sorted(draw(st.sets(st.integers(1, 3), max_size=2))), 4]
        inputs = models if method == "karcher" else [*models, "M0"]
        value["slices"] = [
            {
                "sources": [
                    {
                        "model": model,
                        "layer_range": [first, stop],
                        **({"parameters": draw(parameters(each))} if model != "M0" or method == "linear" else {}),
                    }
                    for model in inputs
                ]
            }
            for first, stop in zip(cuts, cuts[1:], strict=False)
        ]
    value["parameters"] = draw(parameters(moving)) | draw(parameters(steady, lambda kind: kind))
    return value


@given(values=st.lists(random_configs(), min_size=14, max_size=14))
@settings(max_examples=1, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@seed(int(os.environ.get("EVOMERGE_PARITY_SEED", "1")))
def test_random_configs(values: list[dict], places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Read and merged as mergekit does; written again, they say the same. EVOMERGE_PARITY_SEED draws others."""
    texts = {}
    for number, value in enumerate(values):
        text = yaml.safe_dump(value, sort_keys=False)
        for model in ("M0", "M1", "M2", "M3"):
            text = text.replace(f"model: {model}\n", f"model: {places[model]}\n")
        texts[f"{number}-{value['merge_method']}"] = text
    folders = run_mergekit(texts, tmp_path_factory.mktemp("random"))
    for name, text in texts.items():
        recipe = from_mergekit(text)
        note(text)
        assert_same(recipe, folders[name])
        again = from_mergekit(to_mergekit(recipe))
        assert_same(again, folders[name])


def test_adapters(family: list[Path], tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(family[0])
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    text = f"""merge_method: task_arithmetic
base_model: {family[0]}
models:
  - {{model: {family[0]}+{tmp_path / "adapter"}, parameters: {{weight: 0.7}}}}
  - {{model: {family[1]}, parameters: {{weight: 0.2}}}}
dtype: float32
"""
    recipe = from_mergekit(text)
    places = run_mergekit({"short": text, "written": to_mergekit(recipe)}, tmp_path)
    ours = Checkpoint.open(write_checkpoint(recipe, tmp_path / "ours"))
    for place in places.values():
        theirs = Checkpoint.open(place)
        for name in ours.names:
            torch.testing.assert_close(ours.tensor(name), theirs.tensor(name), rtol=1e-6, atol=1e-7)
