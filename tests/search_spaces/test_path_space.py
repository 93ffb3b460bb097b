"""Spaces of paths: every genome decodes to a path that can be walked, and the start is model A."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from search_spaces.courses import ModelSize
from search_spaces.genes import Genome, without_layers
from search_spaces.operators import TaskArithmetic
from search_spaces.path_space import path_space
from search_spaces.recipe import Source, alone
from search_spaces.seeds import seeds
from search_spaces.spaces import SpaceSettings

SETTINGS = TypeAdapter(SpaceSettings)
SOURCES = tuple(Source(path=name) for name in ("base", "one", "two"))
PAIR = {"kind": "data_flow", "models": ["one", "two"]}
SPACES = {
    "edits": PAIR,
    "edits-repeats": PAIR | {"repeats": 3, "scales": "hop", "order": "series", "most_hops": 7},
    "edits-signed": PAIR | {"signed": True, "scales": "hop"},
    "one-model": {"kind": "data_flow", "models": ["base"], "repeats": 2, "scales": "none"},
    "paper": PAIR | {"form": "paper", "most_hops": 40},
    "swaps": PAIR | {"form": "swaps", "blocks": 3},
    "swaps-hop": PAIR | {"form": "swaps", "blocks": 2, "scales": "hop"},
    "joint": {"kind": "joint", "models": [{"layer_groups": 2}, "two", {"operator": "ties"}], "scales": "pair"},
    "hybrid": {"kind": "hybrid", "merge": {"operator": "ties"}},
}


def space(settings, *, layers=4, **more):
    chosen = SETTINGS.validate_python(settings)
    return path_space(chosen, sources=SOURCES, expert_names=("one", "two"), layers=layers, **more)


def visits(recipe):
    return [(hop.slot, hop.layer) for hop in recipe.body.hops]


@pytest.mark.parametrize("name", SPACES)
def test_the_start_is_model_a(name):
    made = space(SPACES[name])
    body = made.decode(made.start).body
    assert visits(made.decode(made.start)) == [(0, layer) for layer in range(4)]
    assert not body.scaled
    assert len(body.slots) == 1, "models that are not visited are left out"


@pytest.mark.parametrize("name", SPACES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_every_genome_is_a_path(name, seed):
    made = space(SPACES[name])
    genome = Genome(made.genes.from_unit(np.random.default_rng(seed).random(len(made.genes))))
    recipe = made.decode(genome)
    body = recipe.body
    assert 2 <= len(body.hops) <= made.course.most_hops
    assert {hop.slot for hop in body.hops} | {0} == set(range(len(body.slots)))
    low, high = made.settings.scale
    assert all(low * (1 - 1e-12) <= abs(hop.scale) <= high * (1 + 1e-12) for hop in body.hops)
    if made.settings.form != "swaps":
        assert visits(recipe)[0] == (0, 0)
        assert visits(recipe)[-1] == (0, 3)
    if made.settings.form == "edits" and made.settings.order == "depth":
        assert sorted(hop.layer for hop in body.hops) == [hop.layer for hop in body.hops]
    assert made.decode(genome) == recipe


def genome_of(made, **values):
    """The start, with the genes that end in a key set to its value."""
    numbers = made.genes.start.copy()
    for name, value in values.items():
        numbers[made.genes.names.index(name)] = value
    return Genome(numbers)


def test_edits_skip_and_insert_at_their_depth():
    made = space(PAIR)
    genome = genome_of(made, **{"skip/one.2": 1, "insert/two.2": 1, "insert/two.3": 1, "scale/one>two": np.log(0.5)})
    recipe = made.decode(genome)
    assert visits(recipe) == [(0, 0), (0, 1), (1, 2), (1, 3), (0, 3)]
    assert [hop.scale for hop in recipe.body.hops] == pytest.approx([1.0, 1.0, 0.5, 1.0, 1.0])


def test_in_series_inserted_layers_follow_the_whole_stack():
    made = space(PAIR | {"order": "series", "repeats": 2})
    genome = genome_of(made, **{"insert/two.1.1": 1, "insert/one.2.2": 1, "skip/one.1.1": 1})
    assert visits(made.decode(genome)) == [(0, 0), (0, 2), (1, 1), (0, 2), (0, 3)]


def test_the_paper_has_its_numbers_of_genes():
    """Two models of 32 layers, three times: 190 indicators and 64^2 scales (reference implementation)."""
    made = space(PAIR | {"form": "paper"}, layers=32)
    names = made.genes.names
    assert sum(name.startswith("use/") for name in names) == 190
    assert sum(name.startswith("scale/") for name in names) == 64**2
    assert not made.genes.whole.any(), "so that separable CMA-ES can search it"


def test_swapped_blocks_need_no_order_of_cuts():
    made = space(PAIR | {"form": "swaps"})
    one, other = (made.decode(genome_of(made, **{"cut/1": a, "cut/2": b, "block/2": 1})) for a, b in ((1, 3), (3, 1)))
    assert one == other
    assert visits(one) == [(0, 0), (1, 1), (1, 2), (0, 3)]


def test_what_exceeds_the_cap_is_left_out_last_insert_first():
    made = space(PAIR | {"most_hops": 5})
    genome = genome_of(made, **{f"insert/two.{layer}": 1 for layer in range(4)})
    assert visits(made.decode(genome)) == [(0, 0), (1, 0), (0, 1), (0, 2), (0, 3)]


SIZE = ModelSize(layers=(10, 10, 10, 10), outside=60)


@given(seed=st.integers(0, 2**32 - 1), most=st.integers(100, 150), hops=st.integers(4, 8))
@settings(max_examples=40, deadline=None)
def test_no_path_exceeds_a_cap_and_only_inserts_give_way(seed, most, hops):
    free, capped = (
        space(PAIR | {"most_parameters": parameters, "most_hops": hops}, size=SIZE) for parameters in (1e9, most)
    )
    genome = Genome(free.genes.from_unit(np.random.default_rng(seed).random(len(free.genes))))
    long, short = (visits(made.decode(genome)) for made in (free, capped))
    assert SIZE.of(layer for _, layer in short) <= most
    assert len(short) <= hops
    assert [visit for visit in short if visit[0] == 0] == [visit for visit in long if visit[0] == 0]
    if SIZE.of(layer for _, layer in long) <= most:
        assert short == long


def test_how_large_paths_are_is_said():
    assert "at most 8 layers and 0.0 million" not in space(PAIR).in_words, "sizes are not known"
    size = ModelSize(layers=(10**6,) * 4, outside=2 * 10**6)
    assert "paths of at most 8 layers and 10.0 million parameters" in space(PAIR, size=size).in_words
    assert "4 layers and 6.0 million" in space(PAIR | {"form": "swaps", "most_hops": 4}, size=size).in_words
    assert "8 layers and 7.5 million" in space(PAIR | {"most_parameters": 7.5e6}, size=size).in_words


MOMENTS = ((1.0, 2.0, 4.0, 8.0, 16.0), (3.0, 5.0, 7.0, 9.0, 11.0))


@pytest.mark.parametrize("scales", ["none", "switch", "hop", "pair"])
def test_scales_start_where_the_stream_is_what_the_layer_knows(scales):
    made = replace(space(PAIR | {"scale_start": "second_moments", "scales": scales}), moments=MOMENTS)
    genome = genome_of(made, **{"skip/one.2": 1, "insert/two.1": 1, "insert/two.2": 1})
    recipe = made.decode(genome)
    assert visits(recipe) == [(0, 0), (0, 1), (1, 1), (1, 2), (0, 3)]
    assert [hop.scale for hop in recipe.body.hops] == [1.0, 1.0, 5.0 / 4.0, 1.0, 8.0 / 9.0]
    assert not made.decode(made.start).body.scaled, "model A needs none"
    if scales == "switch":
        halved = genome_of(made, **{"insert/two.1": 1, "scale/one>two": np.log(0.5)})
        assert [hop.scale for hop in made.decode(halved).body.hops] == pytest.approx([1, 1, 0.5 * 5 / 4, 4 / 7, 1])


@pytest.mark.parametrize(("key", "value"), [("scale_start", "second_moments"), ("most_parameters", 200)])
def test_what_a_setting_needs_must_be_known(key, value):
    made = space(PAIR | {key: value})
    with pytest.raises(ValueError, match=f"{key}: .* not known"):
        made.decode(genome_of(made, **{"insert/two.1": 1}))


def test_joint_genes_are_those_of_the_merges_and_the_path():
    made = space(SPACES["joint"])
    assert made.model_names == ("merge", "two", "merge-2")
    assert made.genes.names[:2] == ("merge/weight/one/layers-0-1", "merge/weight/two/layers-0-1")
    genome = genome_of(made, **{"merge/weight/one/layers-0-1": 0.25, "insert/merge-2.1": 1})
    body = made.decode(genome).body
    assert body.slots[0].blocks[0].operator == TaskArithmetic(weights=(0.25, 0.5))
    assert len(body.slots) == 2
    assert [without_layers(name) for name in made.genes.names[:3]] == [
        "merge/weight/one", "merge/weight/two", "merge/weight/one"
    ]  # fmt: skip
    assert without_layers("scale/one.3>two.12") == "scale/one>two"


def test_seeds_that_the_space_can_express_have_genomes():
    found = {seed.name: seed.genome for seed in seeds(space(PAIR))}
    assert found["one"] == space(PAIR).start
    assert [name for name, genome in found.items() if genome is not None] == ["one"]
    joint = space({"kind": "joint", "models": [{}, "one"]})
    found = {seed.name: seed for seed in seeds(joint)}
    weights = found["uniform average"].genome.values[:2]
    assert np.array_equal(weights, [0.5, 0.5])
    assert found["model A"].recipe == joint.decode(joint.start)
    base = {"kind": "data_flow", "models": ["base"]}
    assert {seed.name: seed.genome for seed in seeds(space(base))}["base"] == space(base).start


def test_a_hybrid_begins_in_the_merge_that_was_found():
    made = space(SPACES["hybrid"], first=alone(2, 3))
    assert made.decode(made.start).body.slots == (alone(2, 3),)
    assert not any("weight" in name for name in made.genes.names)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (PAIR | {"models": ["one", "three"]}, "'three' is not known; expected one of base, one, two"),
        (PAIR | {"models": ["one", "one"]}, "one is given twice"),
        (PAIR | {"models": []}, "at least 1 item"),
        (PAIR | {"scale": [0.0, 2.0]}, "bounds must be positive"),
        (PAIR | {"scale": [1.2, 2.0]}, "hold 1"),
        (PAIR | {"most_hops": 3}, "most_hops is 3, but the first model alone has 4 layers"),
        (PAIR | {"form": "swaps", "blocks": 5}, "a layer for each of 5 blocks"),
        (PAIR | {"form": "swaps", "models": ["one"]}, "two models"),
        (PAIR | {"form": "swaps", "repeats": 2}, "every layer once"),
        ({"kind": "joint", "models": []}, "at least 1 item"),
        ({"kind": "hybrid"}, "Field required"),
        (PAIR | {"models": ["one"], "scales": "none"} | {"form": "x"}, "'edits', 'paper' or 'swaps'"),
    ],
)
def test_what_is_refused(settings, match):
    with pytest.raises((ValueError, ValidationError), match=match):
        space(settings)


def test_a_cap_below_model_a():
    with pytest.raises(ValueError, match="most_parameters is 99, but the first model alone has 100"):
        space(PAIR | {"most_parameters": 99}, size=SIZE)


def test_models_of_one_layer():
    with pytest.raises(ValueError, match="at least two layers"):
        space(PAIR, layers=1)
