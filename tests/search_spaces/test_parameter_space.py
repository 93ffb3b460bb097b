"""Parameter spaces: genes with real bounds, decoding, groups, smooth interpolation, presets, seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_settings import needed
from pydantic import ValidationError

from search_spaces.genes import Gene, Genes, Genome
from search_spaces.operators import OPERATORS, Linear, TaskArithmetic, Ties
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.presets import mergekit_evolve, sakana
from search_spaces.recipe import Source
from search_spaces.seeds import UNIFORM, seeds, single_coefficient
from search_spaces.tensors import block_for


def tensors(layers):
    names = ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    inside = [f"model.layers.{layer}.{name}.weight" for layer in range(layers) for name in names]
    return ["model.embed_tokens.weight", *inside, "model.norm.weight", "lm_head.weight"]


def space(experts=2, layers=6, **settings):
    return ParameterSpace(
        settings=ParameterSpaceSettings(**settings),
        sources=tuple(Source(path=f"m{i}") for i in range(experts + 1)),
        expert_names=tuple(f"e{i}" for i in range(experts)),
        layers=layers,
        prompts="0" * 64,
    )


def space_of(operator, **settings):
    experts = OPERATORS[operator].most_experts or 2
    return space(experts=experts, operator=operator, **needed(operator, experts), **settings)


spaces = st.builds(
    space_of,
    layers=st.integers(2, 9),
    operator=st.sampled_from(sorted(OPERATORS)),
    layer_groups=st.integers(1, 2),
    tensor_groups=st.sampled_from([(), ("self_attn",), ("self_attn", "mlp", "norms"), ({"up": ("*.up_proj.*",)},)]),
    smooth=st.booleans(),
)


@given(spaces, st.integers(0, 2**32 - 1))
def test_every_genome_inside_the_bounds_decodes_and_covers_every_tensor(space, seed):
    genes = space.genes
    genome = Genome(np.random.default_rng(seed).uniform(genes.low, genes.high))
    recipe = space.decode(genome)
    for tensor in tensors(space.layers):
        block_for(tensor, recipe.body, space.layers)
    assert space.decode(Genome.from_bytes(genome.to_bytes())) == recipe


@given(spaces)
def test_genomes_outside_the_bounds_are_refused_by_name(space):
    values = space.genes.start.copy()
    values[0] = space.genes.high[0] + 0.01
    with pytest.raises(ValueError, match=space.genes.names[0]):
        space.decode(Genome(values))


def test_gene_values_reach_their_tensors():
    two = space(layer_groups=2, tensor_groups=("self_attn",), weight=(0.0, 1.0))
    assert two.genes.names == (
        "weight/e0/layers-0-2/self_attn",
        "weight/e1/layers-0-2/self_attn",
        "weight/e0/layers-0-2/rest",
        "weight/e1/layers-0-2/rest",
        "weight/e0/layers-3-5/self_attn",
        "weight/e1/layers-3-5/self_attn",
        "weight/e0/layers-3-5/rest",
        "weight/e1/layers-3-5/rest",
    )
    recipe = two.decode(Genome(np.arange(8) / 10))
    at = {tensor: block_for(tensor, recipe.body, 6).operator.weights for tensor in tensors(6)}
    assert at["model.layers.1.self_attn.q_proj.weight"] == (0.0, 0.1)
    assert at["model.embed_tokens.weight"] == (0.2, 0.3)
    assert at["model.layers.4.self_attn.q_proj.weight"] == (0.4, 0.5)
    assert at["lm_head.weight"] == (0.6, 0.7)


def test_smooth_knots_are_interpolated_over_depth():
    smooth = space(experts=1, layers=5, layer_groups=2, smooth=True, weight=(0.0, 1.0))
    recipe = smooth.decode(Genome([0.0, 1.0]))
    weights = [block.operator.weights[0] for block in recipe.body.blocks]
    assert weights == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_weights_may_sum_above_one_and_be_negative_when_asked():
    signed = space(weight=(-1.0, 1.5))
    recipe = signed.decode(Genome([-0.5, 1.5]))
    assert recipe.body.blocks[0].operator == TaskArithmetic(weights=(-0.5, 1.5))


def test_decoded_parameters_keep_the_settings():
    ties = space(operator="ties", normalize=True, scale=0.7, density=(0.2, 0.9))
    operator = ties.decode(Genome([0.4, 0.5, 0.3, 0.8])).body.blocks[0].operator
    assert operator == Ties(weights=(0.4, 0.5), densities=(0.3, 0.8), normalize=True, scale=0.7)


@pytest.mark.parametrize(
    ("settings", "names", "start"),
    [
        ({"operator": "model_stock"}, ("power",), (1.0,)),
        ({"operator": "nuslerp", "t": (0.6, 0.9)}, ("t",), (0.6,)),
        ({"operator": "multislerp"}, ("weight/e0", "weight/e1"), (0.5, 0.5)),
        ({"operator": "sce"}, ("select_topk",), (0.5,)),
        ({"operator": "karcher"}, ("weight/e0", "weight/e1"), (0.5, 0.5)),
        ({"operator": "ramplus_tl"}, ("boost", "boost_cap", "epsilon"), (0.1, 0.2, 1e-5)),
        ({"operator": "nuslerp", "vectors": "rows"}, ("t",), (0.5,)),
        (
            {"operator": "della", "density": (0.2, 0.6)},
            ("weight/e0", "weight/e1", "density/e0", "density/e1", "spread/e0", "spread/e1"),
            (0.5, 0.5, 0.6, 0.6, 0.5, 0.5),
        ),
        (
            {"operator": "breadcrumbs", "gamma": (0.0, 0.1)},
            ("weight/e0", "weight/e1", "density/e0", "density/e1", "gamma/e0", "gamma/e1"),
            (0.5, 0.5, 0.7, 0.7, 0.01, 0.01),
        ),
        ({"operator": "model_stock", "power": (2.0, 3.0)}, ("power",), (2.0,)),
    ],
)
def test_the_genes_of_an_operator_start_inside_their_bounds(settings, names, start):
    made = space(**settings)
    assert made.genes.names == names
    assert tuple(made.genes.start) == start
    operator = made.decode(Genome(made.genes.start)).body.blocks[0].operator
    assert operator.kind == settings["operator"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"tensor_groups": ("attention_heads",)}, "not known"),
        ({"tensor_groups": ("mlp", "mlp")}, "given twice"),
        ({"tensor_groups": ({"rest": ("*",)},)}, "name of the remainder"),
        ({"weight": (1.0, 1.0)}, "low < high"),
        ({"density": (0.0, 1.1)}, r"within \[0, 1\]"),
        ({"layer_groups": 0}, "layer_groups"),
        ({"filter_wise": True}, "filter_wise is no option of task_arithmetic"),
        ({"operator": "ram", "reach": (0.0, 1.0)}, "reach is no parameter of ram, which has epsilon"),
        ({"operator": "karcher", "weight": (-1.0, 1.0)}, "weight of karcher must lie within"),
        ({"operator": "magic"}, "operator"),
        ({"colour": "red"}, "colour"),
        ({"power": (0.5, 1.0)}, "power is no parameter of task_arithmetic, which has weight"),
        ({"operator": "model_stock", "power": (-1.0, 1.0)}, "power of model_stock must lie within"),
        ({"preset": "magic"}, "preset 'magic' is not known"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, match):
    with pytest.raises(ValidationError, match=match):
        ParameterSpaceSettings(**settings)


def test_more_groups_than_layers_and_slerp_of_three_are_refused():
    with pytest.raises(ValueError, match="layer_groups is 7, but the models have 6 layers"):
        space(layer_groups=7)
    with pytest.raises(ValueError, match="slerp merges exactly two experts, got 3"):
        space(experts=3, operator="slerp")
    with pytest.raises(ValueError, match="model_stock merges at least 2 experts, got 1"):
        space(experts=1, operator="model_stock")


def test_sakana_preset_is_the_papers_genome():
    preset = ParameterSpace(
        settings=sakana(),
        sources=tuple(Source(path=f"m{i}") for i in range(4)),
        expert_names=("a", "b", "c"),
        layers=32,
    )
    assert len(preset.genes) == 6
    assert preset.genes.low.tolist() == [0.0] * 6
    assert preset.genes.high.tolist() == [1.0] * 6
    assert preset.genes.start.tolist() == [0.5] * 6
    assert ParameterSpaceSettings(preset="sakana", layer_groups=2).layer_groups == 2


def test_mergekit_evolve_preset_groups_layers_and_starts_where_it_does():
    settings = mergekit_evolve("ties", experts=4, layers=32, layer_granularity=8)
    assert settings.layer_groups == 4
    assert (settings.weight_start, settings.density_start, settings.normalize) == (0.25, 1.0, True)
    with pytest.raises(ValueError, match="does not divide"):
        mergekit_evolve("ties", experts=4, layers=30, layer_granularity=8)
    with pytest.raises(ValueError, match="not 'della'"):
        mergekit_evolve("della", experts=4, layers=32)


def test_seeds_are_base_experts_average_and_classical_merges():
    found = list(seeds(space()))
    assert [seed.name for seed in found][:4] == ["base", "e0", "e1", UNIFORM]
    assert found[3].recipe.body.blocks[0].operator == Linear(weights=(0.0, 0.5, 0.5))
    assert found[1].genome == Genome([1.0, 0.0])
    assert all(seed.genome is None or space().genes.contains(seed.genome) for seed in found)


def test_seeds_that_the_space_cannot_express_have_no_genome():
    assert all(seed.genome is None for seed in seeds(space(operator="ties")))
    narrow = {seed.name: seed.genome for seed in seeds(space(weight=(0.0, 0.9)))}
    assert narrow["e0"] is None
    assert narrow["base"] == Genome([0.0, 0.0])


def test_single_coefficient_is_the_same_for_all():
    assert single_coefficient(space(experts=3), 0.3).body.blocks[0].operator == TaskArithmetic(weights=(0.3,) * 3)


@pytest.mark.parametrize(("low", "high", "start"), [(1, 0, 0.5), (0, 1, 2), (0, float("inf"), 1), (0, 0, 0)])
def test_genes_with_impossible_bounds_are_refused(low, high, start):
    with pytest.raises(ValueError, match="gene g"):
        Gene("g", low, high, start)


def test_genome_is_a_value():
    genome = Genome([0.1, 0.2])
    with pytest.raises(ValueError, match="read-only"):
        genome.values[0] = 1.0
    with pytest.raises(ValueError, match="finite"):
        Genome([float("nan")])
    assert genome == Genome.from_bytes(genome.to_bytes())
    assert Genes((Gene("a", 0, 1, 0), Gene("b", 0, 1, 0))).named(genome) == {"a": 0.1, "b": 0.2}
    with pytest.raises(ValueError, match="different"):
        Genes((Gene("a", 0, 1, 0), Gene("a", 0, 1, 0)))
