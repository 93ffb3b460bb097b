"""Length and LiNeS: how far a block goes from the base, whatever its operator."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_settings import needed
from pydantic import ValidationError

from evomerge.errors import BadRecipe, CandidateFailed
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.mergekit_config import to_mergekit
from search_spaces.genes import Genome
from search_spaces.operators import (
    OPERATORS,
    ArceeFusion,
    DareTies,
    Karcher,
    Linear,
    ModelStock,
    NearSwap,
    NuSlerp,
    Operator,
    Passthrough,
    Ram,
    Sce,
    Slerp,
    TaskArithmetic,
    Ties,
)
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.recipe import Block, Recipe, Source

RecipeOf = Callable[..., Recipe]
NAMES = ("model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight", "model.norm.weight")
ANY = [
    Linear(weights=(1, 2, 0.5, 0.1)),
    Slerp(between=(1, 2), t=0.3),
    Slerp(between=(0, 2), t=0.3),
    Slerp(between=(3, 0), t=0.7),
    Passthrough(source=2, scale=1.1),
    Karcher(weights=(1, 1, 1, 0)),
    TaskArithmetic(weights=(0.4, -0.2, 0.7)),
    Ties(weights=(0.4, 0.3, 0.7), densities=(0.3, 0.5, 0.9)),
    DareTies(weights=(1, 0, 0), densities=(0.5, 1, 1)),
    Sce(select_topk=0.5),
    ModelStock(filter_wise=True),
    NuSlerp(between=(1, 3), t=0.3),
    NearSwap(source=1, reach=0.005),
    ArceeFusion(source=2),
    Ram(epsilon=0.005),
]


def block(operator: Operator, **step: object) -> list[Block]:
    return [Block(layers=(0, 4), operator=operator, **step)]


@pytest.mark.parametrize("operator", ANY, ids=lambda operator: operator.kind)
def test_length_is_that_of_the_mean_task_vector(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, operator: Operator
) -> None:
    for name in NAMES:
        base, *experts = (checkpoint.tensor(name).double() for checkpoint in checkpoints)
        mean = sum(float((expert - base).norm()) for expert in experts) / len(experts)
        plain = engine.merge_tensor(recipe_of(block(operator)), name).double() - base
        found = engine.merge_tensor(recipe_of(block(operator, length=0.6)), name).double() - base
        assert float(found.norm()) == pytest.approx(0.6 * mean if plain.any() else 0.0, rel=1e-4)
        if plain.any():
            assert float(torch.cosine_similarity(found.flatten(), plain.flatten(), dim=0)) > 1 - 1e-6


@given(alpha=st.floats(-1, 2), beta=st.floats(-1, 2), operator=st.sampled_from(ANY))
@settings(max_examples=25, deadline=None)
def test_lines_grow_over_the_layers(
    engine: MergeEngine,
    checkpoints: list[Checkpoint],
    recipe_of: RecipeOf,
    alpha: float,
    beta: float,
    operator: Operator,
) -> None:
    for name, place in zip(NAMES, (0.0, 2 / 3, 0.0), strict=True):
        base = checkpoints[0].tensor(name).double()
        plain = engine.merge_tensor(recipe_of(block(operator)), name).double() - base
        found = engine.merge_tensor(recipe_of(block(operator, lines=(alpha, beta))), name).double() - base
        torch.testing.assert_close(found, (alpha + beta * place) * plain, rtol=3e-5, atol=3e-7)


def test_whole_merges_write_what_single_tensors_do(engine: MergeEngine, recipe_of: RecipeOf) -> None:
    recipe = recipe_of(block(TaskArithmetic(weights=(0.4, 0.2, 0.7)), length=0.5, lines=(0.2, 1.0)))
    out = {name: torch.empty_like(engine.merge_tensor(recipe, name)) for name in engine.order}
    engine.merge(recipe, out)
    assert all(torch.equal(out[name], engine.merge_tensor(recipe, name)) for name in engine.order)


def test_what_the_operator_leaves_at_the_base_stays_there(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf
) -> None:
    recipe = recipe_of(block(TaskArithmetic(weights=(0, 0, 0)), length=0.5))
    assert torch.equal(engine.merge_tensor(recipe, NAMES[1]), checkpoints[0].tensor(NAMES[1]))
    with pytest.raises(CandidateFailed, match="mostly rounding errors"):
        engine.merge_tensor(recipe_of(block(TaskArithmetic(weights=(1e-7, 0, 0)), length=0.5)), NAMES[1])


def test_steps_need_a_base_and_are_not_mergekits(recipe_of: RecipeOf) -> None:
    with pytest.raises(ValidationError, match="the recipe has none"):
        recipe_of(block(Linear(weights=(1, 1, 1, 1)), length=1.0), base=None)
    with pytest.raises(ValidationError, match="greater than 0"):
        recipe_of(block(Sce(), length=0.0))
    with pytest.raises(BadRecipe, match="no length and no lines"):
        to_mergekit(recipe_of(block(Sce(), lines=(0.0, 1.0))))


def test_recipes_without_steps_keep_their_text(recipe_of: RecipeOf) -> None:
    text = recipe_of(block(TaskArithmetic(weights=(1, 1, 1)))).to_json()
    assert "length" not in text and "lines" not in text
    stepped = recipe_of(block(TaskArithmetic(weights=(1, 1, 1)), length=0.5, lines=(0.1, 0.9)))
    assert Recipe.model_validate_json(stepped.to_json()) == stepped


@pytest.mark.parametrize("kind", OPERATORS)
def test_steps_are_genes_of_every_operator(kind: str) -> None:
    experts = OPERATORS[kind].most_experts or 2
    given = {"length": (0.2, 1.0), "lines_alpha": (0.0, 1.0), "lines_beta": (-0.5, 1.5)}
    space = ParameterSpace(
        settings=ParameterSpaceSettings(operator=kind, layer_groups=2, **given, **needed(kind, experts)),
        sources=tuple(Source(path=f"m{i}") for i in range(experts + 1)),
        expert_names=tuple(f"e{i}" for i in range(experts)),
        layers=4,
        prompts="0" * 64,
    )
    genome = Genome(space.genes.start)
    assert space.genes.names[-1] == "lines_beta/layers-2-3"
    assert all(block.length == 0.7 and block.lines == (1.0, 0.0) for block in space.decode(genome).body.blocks)
