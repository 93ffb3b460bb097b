import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from evomerge.errors import BadRecipe
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.mergekit_config import from_mergekit, to_mergekit
from evomerge.merging.mergekit_settings import METHODS
from search_spaces.operators import (
    ArceeFusion,
    Breadcrumbs,
    BreadcrumbsTies,
    DareLinear,
    DareTies,
    Della,
    DellaLinear,
    Karcher,
    Linear,
    ModelStock,
    MultiSlerp,
    NearSwap,
    NuSlerp,
    Operator,
    Passthrough,
    Ram,
    RamPlus,
    Sce,
    Slerp,
    TaskArithmetic,
    Ties,
)
from search_spaces.recipe import Block, Blocks, Recipe, Source
from search_spaces.tensors import block_for

RecipeOf = Callable[..., Recipe]
LAYERS = 4
A, B = TaskArithmetic(weights=(0.4, -0.2, 0.7), scale=1.5), TaskArithmetic(weights=(0.1, 0.2, 0.3), scale=0.5)
C = TaskArithmetic(weights=(0.5, 0.1, 0), normalize=True)
T = Ties(weights=(0.4, 0.3, 0.7), densities=(0.3, 0.5, 0.9), scale=0.8)
EXPRESSIBLE: dict[str, Operator | list[Block]] = {
    "linear": Linear(weights=(1, 2, 0.5, -0.3)),
    "linear-plain": Linear(weights=(0.5, 0, 0.5, 0.2), normalize=False),
    "slerp": Slerp(between=(0, 2), t=0.3),
    "slerp-without-base": Slerp(between=(3, 1), t=0.25),
    "slerp-pairs": [
        Block(layers=(0, 2), operator=Slerp(between=(0, 2), t=0.3)),
        Block(layers=(2, 4), tensors=("*mlp*",), operator=Slerp(between=(1, 3), t=0.6)),
        Block(layers=(2, 4), operator=Slerp(between=(3, 1), t=0.25)),
    ],
    "task_arithmetic": A,
    "ties": T,
    "dare_linear": DareLinear(weights=(0.4, 0.3, 0.7), densities=(0.3, 0.5, 0.9), rescale=False),
    "dare_ties": DareTies(weights=(0.4, 0.3, 0.7), densities=(0.3, 0.5, 0.9), normalize=False),
    "model_stock": ModelStock(),
    "multislerp": MultiSlerp(weights=(0.4, -0.3, 0.7), normalize=False),
    "nuslerp": [
        Block(layers=(0, 2), tensors=("*mlp*",), operator=NuSlerp(between=(3, 1), t=0.25)),
        Block(layers=(0, 2), operator=NuSlerp(between=(1, 3), t=0.125)),
        Block(layers=(2, 4), operator=NuSlerp(between=(2, 1), t=1.5)),
    ],
    "sce": [
        Block(layers=(0, 2), tensors=("*mlp*",), operator=Sce(select_topk=0.3)), Block(layers=(0, 4), operator=Sce())
    ],
    "della": Della(weights=(0.4, 0.3, 0.7), densities=(0.25, 0.5, 1), spreads=(0.5, 0, 0)),
    "della_linear": DellaLinear(
        weights=(0.4, -0.3, 0.7), densities=(0.75, 0.5, 0), spreads=(0.5, 0.25, 0), rescale=False
    ),
    "breadcrumbs": Breadcrumbs(weights=(0.4, -0.3, 0.7), densities=(0.3, 0.5, 0.9), gammas=(0.05, 0, 0), rescale=True),
    "breadcrumbs_ties": [
        Block(layers=(0, 4), tensors=("*mlp*",), operator=BreadcrumbsTies(
            weights=(0.4, -0.3, 0.7), densities=(0.3, 0.5, 0.9), gammas=(0.05, 0, 0.3))),
        Block(layers=(0, 4), operator=BreadcrumbsTies(
            weights=(0.4, 0.3, 0.7), densities=(0.3, 0.1, 0.9), gammas=(0.01, 0.01, 0), scale=0.7)),
    ],
    "layers": [
        Block(layers=(0, 1), operator=A), Block(layers=(1, 3), operator=B), Block(layers=(3, 4), operator=C)
    ],
    "tensors": [
        Block(layers=(0, 4), tensors=("*self_attn*",), operator=A),
        Block(layers=(0, 4), tensors=("*mlp.up*", "*mlp.down*"), operator=B),
        Block(layers=(0, 4), operator=C),
    ],
    "layers-and-tensors": [
        Block(layers=(0, 2), tensors=("*mlp*",), operator=T),
        Block(layers=(1, 99), tensors=("model.layers.*.self_attn.[qk]_proj.weight",), operator=Ties(
            weights=(0.1, 0.1, 0.1), densities=(1, 1, 1))),
        Block(layers=(0, 99), tensors=("model.embed_tokens.weight",), operator=Ties(
            weights=(0.2, 0.1, 0.1), densities=(1, 0.2, 1))),
        Block(layers=(0, 99), operator=Ties(weights=(0.3, 0.1, 0.1), densities=(1, 1, 0.4))),
    ],
    "karcher": [
        Block(layers=(0, 2), operator=Karcher(weights=(0, 1, 0, 1), max_iter=20)),
        Block(layers=(2, 4), operator=Karcher(weights=(2, 0, 2, 0), tol=1e-4)),
    ],
    "passthrough": [
        Block(layers=(0, 1), operator=Passthrough(source=2, scale=0.5)),
        Block(layers=(1, 4), tensors=("*mlp*",), operator=Passthrough(source=1, scale=1.25)),
        Block(layers=(1, 4), operator=Passthrough(source=1)),
    ],
    "nearswap": [
        Block(layers=(0, 4), tensors=("*mlp*",), operator=NearSwap(source=2, reach=0.004)),
        Block(layers=(0, 4), operator=NearSwap(source=2, reach=0.0)),
    ],
    "arcee_fusion": ArceeFusion(source=3),
    "ram": Ram(epsilon=0.008),
    "ramplus_tl": [
        Block(layers=(0, 4), tensors=("*mlp*",), operator=RamPlus(boost=0.5, boost_cap=2, epsilon=0.01)),
        Block(layers=(0, 4), operator=RamPlus(epsilon=0.01)),
    ],
    "nuslerp-rows": [
        Block(layers=(0, 2), tensors=("*mlp*",), operator=NuSlerp(between=(1, 3), t=0.25, vectors="columns")),
        Block(layers=(0, 2), operator=NuSlerp(between=(1, 3), t=0.125)),
        Block(layers=(2, 4), operator=NuSlerp(between=(2, 1), t=1.5, vectors="rows")),
    ],
    "model_stock-rows": [
        Block(layers=(0, 4), tensors=("*mlp*",), operator=ModelStock(filter_wise=True)),
        Block(layers=(0, 4), operator=ModelStock()),
    ],
    "head": [
        Block(layers=(0, 4), tensors=("lm_head.weight",), operator=A),
        Block(layers=(0, 4), tensors=("model.norm.weight", "model.layers.3.mlp.up_proj.weight"), operator=B),
        Block(layers=(0, 4), operator=C),
    ],
}  # fmt: skip


def merged(recipe: Recipe) -> dict[str, torch.Tensor]:
    checkpoints = [Checkpoint.open(Path(source.path)) for source in recipe.sources]
    engine = MergeEngine(checkpoints, names=checkpoints[0].names)
    return {name: engine.merge_tensor(recipe, name) for name in engine.order}


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_recipes_come_back_with_the_same_effect(name: str, recipe_of: RecipeOf) -> None:
    recipe = recipe_of(EXPRESSIBLE[name], dtype="bfloat16" if name == "ties" else "float32", seed=5)
    again = from_mergekit(to_mergekit(recipe), mask_seed=5)
    assert again.dtype == recipe.dtype
    assert again.sources[again.tokenizer] == recipe.sources[recipe.tokenizer]
    expected, found = merged(recipe), merged(again)
    for tensor_name, tensor in expected.items():
        torch.testing.assert_close(found[tensor_name], tensor, rtol=2e-7, atol=2e-8)


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_a_second_trip_changes_nothing(name: str, recipe_of: RecipeOf, family: list[Path]) -> None:
    once = from_mergekit(to_mergekit(recipe_of(EXPRESSIBLE[name])))
    twice = from_mergekit(to_mergekit(once))
    assert twice.sources == once.sources
    assert operators(twice, family) == operators(once, family)


def test_every_method_of_mergekit_is_among_them() -> None:
    blocks = [
        what if isinstance(what, list) else [Block(layers=(0, 4), operator=what)] for what in EXPRESSIBLE.values()
    ]
    assert {block.operator.kind for each in blocks for block in each} == set(METHODS)


def test_uniform_recipe_is_written_as_models(recipe_of: RecipeOf) -> None:
    value = yaml.safe_load(to_mergekit(recipe_of(A)))
    assert value["merge_method"] == "task_arithmetic"
    assert [entry["parameters"]["weight"] for entry in value["models"][1:]] == [0.4, -0.2, 0.7]
    assert value["parameters"] == {"normalize": False, "lambda": 1.5}
    assert (value["dtype"], value["out_dtype"]) == ("float32", "float32")


def test_layer_groups_are_written_as_slices(recipe_of: RecipeOf) -> None:
    value = yaml.safe_load(to_mergekit(recipe_of(EXPRESSIBLE["layers"])))
    assert [entry["sources"][1]["layer_range"] for entry in value["slices"]] == [[0, 1], [1, 3], [3, 4]]


def test_tensor_patterns_are_written_as_filters(recipe_of: RecipeOf) -> None:
    value = yaml.safe_load(to_mergekit(recipe_of(EXPRESSIBLE["tensors"])))
    assert [entry.get("filter") for entry in value["parameters"]["lambda"]] == ["self_attn", "mlp.up", "mlp.down", None]


def test_tokenizer_of_an_expert_is_named(recipe_of: RecipeOf) -> None:
    recipe = recipe_of(A, tokenizer=2)
    text = to_mergekit(recipe)
    assert yaml.safe_load(text)["tokenizer_source"] == recipe.sources[2].path
    assert from_mergekit(text).tokenizer == 2


def test_revisions_and_odd_paths_survive(family: list[Path], tmp_path: Path) -> None:
    odd = tmp_path / "a@b+c d"
    shutil.copytree(family[0], odd)
    sources = (Source(path=str(odd)), Source(path=str(family[1]), revision="v1"))
    blocks = Blocks(blocks=(Block(layers=(0, 4), operator=TaskArithmetic(weights=(0.5,))),))
    assert from_mergekit(to_mergekit(Recipe(sources=sources, body=blocks))).sources == sources


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ([Block(layers=(0, 2), operator=A), Block(layers=(2, 4), operator=T)], "one merge_method.*ties"),
        (Ties(weights=(0.4, -0.3, 0.7), densities=(1, 1, 1)), "negative weights"),
        (DareTies(weights=(0.4, -0.3, 0.7), densities=(1, 1, 1), normalize=True), "negative weights"),
        (
            [
                Block(layers=(0, 4), tensors=("*mlp*",), operator=Slerp(between=(0, 1), t=0.5)),
                Block(layers=(0, 4), operator=Slerp(between=(0, 2), t=0.5)),
            ],
            "the same models in a slice with slerp",
        ),
        ([Block(layers=(0, 3), operator=A)], "no block"),
        (Della(weights=(1, 1, 1), densities=(0.5,) * 3, spreads=(1, 0, 0)), "every spread below 1"),
        (
            [
                Block(layers=(0, 4), tensors=("*mlp*",), operator=NuSlerp(between=(1, 2), t=0.5)),
                Block(layers=(0, 4), operator=NuSlerp(between=(1, 3), t=0.5)),
            ],
            "the same models in a slice with nuslerp",
        ),
        (Sce(scale=0.5), "sce has no lambda"),
        (ModelStock(power=0.5), "model_stock has no power"),
        (Karcher(weights=(0, 1, 2, 0)), "karcher has no weights"),
        (
            [
                Block(layers=(0, 2), operator=Karcher(weights=(0, 1, 0, 1))),
                Block(layers=(2, 4), operator=Karcher(weights=(1, 1, 1, 0))),
            ],
            "karcher of as many models in every slice",
        ),
        (ArceeFusion(source=1, fence=2.0), "arcee_fusion has no fence"),
        (
            [
                Block(layers=(0, 4), tensors=("*mlp*",), operator=Passthrough(source=1)),
                Block(layers=(0, 4), operator=Passthrough(source=2)),
            ],
            "the same models in a slice with passthrough",
        ),
    ],
)
def test_what_mergekit_cannot_express(recipe_of: RecipeOf, what: Operator | list[Block], match: str) -> None:
    with pytest.raises(BadRecipe, match=match):
        to_mergekit(recipe_of(what))


def config(family: list[Path], text: str) -> str:
    for number in range(4):
        text = text.replace(f"M{number}", str(family[number]))
    return text


def operators(recipe: Recipe, family: list[Path]) -> dict[str, Operator]:
    names = Checkpoint.open(family[0]).names
    return {name: block_for(name, recipe.body, LAYERS).operator for name in names}


def test_gradients_run_over_the_layers_and_the_ends_take_the_first_value(family: list[Path]) -> None:
    text = """
    merge_method: slerp
    base_model: M0
    models: [{model: M1}]
    parameters:
      t:
        - {filter: self_attn, value: [0, 0.6, 0.3]}
        - {filter: mlp, value: [1, "4e-1"]}
        - value: [0.5, 0.2]
    dtype: bfloat16
    """
    recipe = from_mergekit(config(family, text))
    found = {name: operator.t for name, operator in operators(recipe, family).items()}  # type: ignore[union-attr]
    place = "model.layers.{}.{}.weight"
    for layer, (attention, mlp, norm) in enumerate([(0, 1, 0.5), (0.4, 0.8, 0.4), (0.5, 0.6, 0.3), (0.3, 0.4, 0.2)]):
        assert found[place.format(layer, "self_attn.q_proj")] == pytest.approx(attention)
        assert found[place.format(layer, "mlp.up_proj")] == pytest.approx(mlp)
        assert found[place.format(layer, "input_layernorm")] == pytest.approx(norm)
    assert {found[name] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")} == {0.5}
    assert recipe.dtype == "bfloat16"
    assert (recipe.base, recipe.tokenizer) == (0, 0)


def test_the_nearest_scope_wins_and_filters_that_do_not_match_fall_through(family: list[Path]) -> None:
    text = """
    merge_method: ties
    base_model: M0
    slices:
      - sources:
          - {model: M0, layer_range: [0, 1]}
          - {model: M1, layer_range: [0, 1], parameters: {weight: {filter: mlp, value: 0.9}, density: [0.2, 0.4]}}
        parameters: {weight: [{filter: self_attn, value: 0.8}], lambda: 0.5}
      - sources:
          - {model: M2, layer_range: [1, 4], parameters: {weight: [0.1, 0.3]}}
          - {model: M0, layer_range: [1, 4]}
    parameters: {weight: 0.7, density: 0.6, int8_mask: true, normalize: false, lambda: 0.25}
    out_dtype: float16
    dtype: float32
    """
    recipe = from_mergekit(config(family, text))
    found = operators(recipe, family)
    assert [source.path for source in recipe.sources] == [str(family[i]) for i in (0, 1, 2)]

    def expected(weights: tuple[float, float], densities: tuple[float, float], scale: float) -> Ties:
        return Ties(weights=weights, densities=densities, normalize=False, scale=scale)

    assert found["model.layers.0.mlp.up_proj.weight"] == expected((0.9, 0), (0.4, 1), 0.5)
    assert found["model.layers.0.self_attn.q_proj.weight"] == expected((0.8, 0), (0.4, 1), 0.5)
    assert found["model.layers.0.input_layernorm.weight"] == expected((0.7, 0), (0.4, 1), 0.5)
    assert found["model.embed_tokens.weight"] == expected((0.7, 0), (0.2, 1), 0.5)
    assert found["model.layers.2.mlp.up_proj.weight"] == expected((0, 0.2), (1, 0.6), 0.25)
    assert found["lm_head.weight"] == expected((0, 0.1), (1, 0.6), 0.25)
    assert recipe.dtype == "float16"


def test_defaults_are_those_of_mergekit(family: list[Path]) -> None:
    for method, normalize, rescale in [
        ("linear", True, None), ("task_arithmetic", False, None), ("ties", True, None),
        ("dare_linear", False, True), ("dare_ties", False, True),
        ("della", True, True), ("della_linear", False, True),
        ("breadcrumbs", False, False), ("breadcrumbs_ties", False, False),
    ]:  # fmt: skip
        text = f"{{merge_method: {method}, base_model: M0, models: [{{model: M1}}], parameters: {{weight: 1}}}}"
        operator = from_mergekit(config(family, text + "\n")).body.blocks[0].operator
        assert operator.normalize is normalize  # type: ignore[union-attr]
        assert getattr(operator, "rescale", None) is rescale
        assert getattr(operator, "scale", 1.0) == 1.0


def test_a_linear_merge_needs_no_base(family: list[Path]) -> None:
    text = "merge_method: linear\nmodels: [{model: M1, parameters: {weight: 1}}, {model: M2, parameters: {weight: 3}}]"
    recipe = from_mergekit(config(family, text))
    assert recipe.base is None
    assert recipe.dtype == "float32"
    assert recipe.body.blocks == (Block(layers=(0, 4), operator=Linear(weights=(1, 3))),)


def test_a_config_is_read_from_a_file(family: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "merge.yml"
    file.write_text(config(family, "merge_method: slerp\nbase_model: M0\nmodels: [{model: M3}]\nparameters: {t: 0.5}"))
    assert from_mergekit(file) == from_mergekit(str(file)) == from_mergekit(file.read_text())
    with pytest.raises(BadRecipe, match="cannot be read"):
        from_mergekit(tmp_path / "nowhere.yml")


GOOD = """
merge_method: ties
base_model: M0
models:
  - {model: M1, parameters: {weight: 0.5, density: 0.4}}
dtype: float32
"""
SLICES = """
merge_method: slerp
base_model: M0
parameters: {t: 0.5}
slices:
  - sources: [{model: M0, layer_range: [0, 2]}, {model: M1, layer_range: [0, 2]}]
  - sources: [{model: M0, layer_range: [2, 4]}, {model: M1, layer_range: [2, 4]}]
"""


@pytest.mark.parametrize(
    ("text", "old", "new", "match"),
    [
        (GOOD, "ties", "magic", "'magic' is not supported; linear, slerp"),
        (GOOD, "dtype:", "modules: {}\ndtype:", "'modules' is not supported"),
        (GOOD, "density", "gamma", "'gamma' is not supported in the parameters of ties"),
        (GOOD, "model: M1,", "model: M1, name: x,", "'name' is not supported in an entry of models"),
        (GOOD, "M1", "M1+adapter", "only adapters of the base_model"),
        (GOOD, "float32", "float64", "dtype should be"),
        (GOOD, "weight: 0.5", "weight: much", "weight should be a number, got 'much'"),
        (GOOD, "weight: 0.5, ", "", "'weight' is required and missing"),
        (GOOD, "weight: 0.5", "weight: -0.5", "negative weights"),
        (GOOD, "weight: 0.5", "weight: {filter: mlp}", "entries of value and filter"),
        (GOOD, "weight: 0.5", "weight: {filter: mlp, value: 1, t: 3}", "entries of value and filter"),
        (GOOD, "dtype:", "parameters: {rescale: true}\ndtype:", "rescale is not supported for ties"),
        (GOOD, "dtype:", "parameters: {normalize: maybe}\ndtype:", "normalize should be true or false"),
        (GOOD, "dtype:", "tokenizer: {source: base, rows: {}}\ndtype:", "'rows' is not supported in tokenizer"),
        (GOOD, "dtype:", "tokenizer_source: union\ntokenizer: {source: base}\ndtype:", "not both"),
        (GOOD, "dtype:", "tokenizer: {pad_to_multiple_of: 0}\ndtype:", "pad_to_multiple_of should be"),
        (GOOD, "dtype:", "tokenizer: {tokens: [a]}\ndtype:", "tokens should be a mapping"),
        (GOOD, "dtype:", "tokenizer: {tokens: {a: {}}}\ndtype:", "token 'a' has no source"),
        (GOOD, "dtype:", "tokenizer: {tokens: {a: {source: M3}}}\ndtype:", "which is not merged"),
        (
            GOOD,
            "dtype:",
            "tokenizer: {tokens: {a: {source: {kind: model_token, model: M1}}}}\ndtype:",
            "token or token_id",
        ),
        (GOOD, "dtype:", "tokenizer: {tokens: {a: {source: M1}}}\ndtype:", "which has no token 'a'"),
        (GOOD, "dtype:", "chat_template: chatml\ndtype:", "names a file inside mergekit"),
        (GOOD, "base_model: M0", "base_model:", "ties needs a base_model"),
        (GOOD, "models:", "slices: []\nmodels:", "exactly one of models and slices"),
        (GOOD, "  - {", "  - {model: M1}\n  - {", "listed twice"),
        (GOOD, "merge_method: ties", "- merge_method", "not YAML"),
        (SLICES, "[2, 4]", "[1, 3]", "move, repeat or drop layers"),
        (SLICES, "M1, layer_range: [2, 4]", "M1, layer_range: [0, 2]", "move, repeat or drop layers"),
        (SLICES, "[2, 4]", "[2, 3]", "end at layer 3.*4 layers"),
        (SLICES, "model: M0, layer_range: [2, 4]", "model: M2, layer_range: [2, 4]", "not among the sources"),
        (SLICES, "  - sources", "  - residual_weight: 1\n    sources", "'residual_weight' is not supported"),
        (SLICES, "t: 0.5", "t: 1.5", "t should be between 0 and 1"),
    ],
)
def test_what_is_not_supported_is_named(family: list[Path], text: str, old: str, new: str, match: str) -> None:
    from_mergekit(config(family, text))
    assert old in text
    with pytest.raises(BadRecipe, match=match):
        from_mergekit(config(family, text.replace(old, new)))


NUSLERP = """
merge_method: nuslerp
base_model: M0
models: [{model: M1, parameters: {weight: 1}}, {model: M2, parameters: {weight: 3}}]
parameters: {nuslerp_flatten: true}
"""
DELLA = """
merge_method: della
base_model: M0
models: [{model: M1, parameters: {weight: 0.5, epsilon: 0.1}}]
parameters: {density: 0.7}
"""
CRUMBS = """
merge_method: breadcrumbs_ties
base_model: M0
models: [{model: M1, parameters: {weight: 0.5, gamma: 0.02}}]
parameters: {normalize: true, density: 0.5}
"""
NEAR = """
merge_method: nearswap
base_model: M0
models: [{model: M1}]
parameters: {t: 0.002}
"""
PASS = """
merge_method: passthrough
models: [{model: M1, parameters: {scale: 0.5}}]
"""
STOCK = """
merge_method: model_stock
base_model: M0
models: [{model: M1}, {model: M2}]
"""


@pytest.mark.parametrize(
    ("text", "old", "new", "match"),
    [
        (STOCK, ", {model: M2}", "", "at least two other models"),
        (STOCK.replace("model_stock", "sce"), "models:", "tokenizer_source: M3\nmodels:", "only gives the tokenizer"),
        (NEAR, "{model: M1}", "{model: M1}, {model: M2}", "nearswap takes one model besides the base_model, got 2"),
        (NEAR, "base_model: M0", "", "nearswap needs a base_model"),
        (NEAR, "t: 0.002", "", "'t' is required and missing"),
        (PASS, "{model: M1", "{model: M2}, {model: M1", "passthrough copies one model a slice, got 2"),
        (NUSLERP, "weight: 3", "weight: -1", "the weights of nuslerp cancel"),
        (NUSLERP, ", {model: M2, parameters: {weight: 3}}", "", "two models besides the base_model, got 1"),
        (DELLA, "0.1", "0.35", "less than min.density, 1 - density. = 0.3, got 0.35"),
        (DELLA, "0.1", "-0.1", "epsilon should be at least 0"),
        (DELLA, "weight: 0.5", "weight: -0.5", "negative weights"),
        (CRUMBS, "0.02", "-0.02", "gamma should be between 0 and 1"),
        (CRUMBS, "weight: 0.5", "weight: -0.5", "negative weights"),
        (STOCK, "models:", "tokenizer_source: M3\nmodels:", "only gives the tokenizer"),
    ],
)
def test_what_is_not_supported_of_the_other_operators(
    family: list[Path], text: str, old: str, new: str, match: str
) -> None:
    from_mergekit(config(family, text))
    assert old in text
    with pytest.raises(BadRecipe, match=match):
        from_mergekit(config(family, text.replace(old, new)))


def test_text_that_is_not_a_mapping() -> None:
    with pytest.raises(BadRecipe, match="expected a mapping"):
        from_mergekit("nowhere.yml")


@pytest.mark.parametrize("line", ["tokenizer_source: M1", "tokenizer: {source: M1}"])
def test_the_tokenizer_of_a_merged_model_is_honoured(family: list[Path], line: str) -> None:
    assert from_mergekit(config(family, GOOD + line)).tokenizer == 1
    assert from_mergekit(config(family, GOOD + line.replace("M1", "base"))).tokenizer == 0


def test_a_model_that_only_gives_the_tokenizer_weighs_nothing(family: list[Path]) -> None:
    recipe = from_mergekit(config(family, GOOD + "tokenizer_source: M3"))
    assert [source.path for source in recipe.sources] == [str(family[i]) for i in (0, 1, 3)]
    assert recipe.tokenizer == 2
    assert recipe.body.blocks[0].operator == Ties(weights=(0.5, 0), densities=(0.4, 1))
