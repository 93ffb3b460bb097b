"""Recipes are values: canonical text, stable digest, faults refused with the place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces.operators import DareTies, Linear, Slerp, TaskArithmetic
from search_spaces.recipe import Block, Blocks, Recipe, Source
from search_spaces.tensors import block_for, layer_of

finite = st.floats(-10, 10, allow_nan=False)


def recipe(*operators, sources=3, **changes):
    blocks = tuple(Block(layers=(0, 4), operator=operator) for operator in operators)
    values = {"sources": tuple(Source(path=f"m{i}") for i in range(sources)), "body": Blocks(blocks=blocks)}
    return Recipe(**{**values, **changes})


@given(st.tuples(finite, finite), finite)
def test_json_round_trip_is_exact(weights, scale):
    before = recipe(TaskArithmetic(weights=weights, scale=scale))
    after = Recipe.model_validate_json(before.to_json())
    assert after == before
    assert after.digest == before.digest
    assert after.to_json() == before.to_json()


def test_canonical_json_has_sorted_keys_and_no_spaces():
    text = recipe(TaskArithmetic(weights=(1.0, 0.5))).to_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_digest_names_sources_by_content_not_by_place():
    operator = Linear(weights=(1.0,))
    here = recipe(operator, sources=1).model_copy(update={"sources": (Source(path="a", digest="d" * 64),)})
    there = here.model_copy(update={"sources": (Source(path="b", digest="d" * 64),)})
    other = here.model_copy(update={"sources": (Source(path="a", digest="e" * 64),)})
    assert Recipe.model_validate(here.model_dump()).digest == Recipe.model_validate(there.model_dump()).digest
    assert Recipe.model_validate(here.model_dump()).digest != Recipe.model_validate(other.model_dump()).digest


@pytest.mark.parametrize(
    ("operator", "changes", "match"),
    [
        (TaskArithmetic(weights=(1.0,)), {}, "one of weights per expert \\(2\\), got 1"),
        (Linear(weights=(1.0, 1.0)), {}, "one of weights per source \\(3\\), got 2"),
        (DareTies(weights=(1.0, 1.0), densities=(0.5,)), {}, "one of densities per expert"),
        (TaskArithmetic(weights=(1.0, 1.0)), {"base": None}, "needs a base"),
        (Slerp(between=(1, 1), t=0.5), {}, "two different sources"),
        (Slerp(between=(1, 3), t=0.5), {}, "two different sources"),
        (TaskArithmetic(weights=(1.0, 1.0)), {"base": 3}, "base is source 3"),
        (TaskArithmetic(weights=(1.0, 1.0)), {"tokenizer": 7}, "tokenizer is source 7"),
    ],
)
def test_recipes_that_cannot_be_are_refused(operator, changes, match):
    with pytest.raises(ValidationError, match=match):
        recipe(operator, **changes)


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_density_outside_its_range_is_refused(density):
    with pytest.raises(ValidationError, match="densities"):
        DareTies(weights=(1.0,), densities=(density,))


def test_infinite_weight_is_refused():
    with pytest.raises(ValidationError, match="finite"):
        TaskArithmetic(weights=(float("inf"),))


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("model.embed_tokens.weight", 0),
        ("model.layers.2.self_attn.q_proj.weight", 2),
        ("transformer.h.3.attn.c_attn.weight", 3),
        ("gpt_neox.layers.1.attention.dense.bias", 1),
        ("transformer.wte.weight", 0),
        ("model.norm.weight", 3),
        ("lm_head.weight", 3),
        ("embed_out.weight", 3),
    ],
)
def test_layer_of(tensor, layer):
    assert layer_of(tensor, 4) == layer


def test_first_matching_block_decides_and_gaps_are_named():
    attention = Block(layers=(0, 2), tensors=("*.self_attn.*",), operator=Linear(weights=(1.0,)))
    rest = Block(layers=(0, 2), operator=Linear(weights=(2.0,)))
    body = Blocks(blocks=(attention, rest))
    assert block_for("model.layers.1.self_attn.q_proj.weight", body, 2) is body.blocks[0]
    assert block_for("model.layers.1.mlp.up_proj.weight", body, 2) is body.blocks[1]
    with pytest.raises(ValueError, match="no block of the recipe covers tensor 'model.norm.weight'"):
        block_for("model.norm.weight", body, 4)
