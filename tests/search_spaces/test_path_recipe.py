"""The body of a data-flow recipe: what is refused, and what its identity is."""

import pytest
from pydantic import ValidationError

from search_spaces.operators import TaskArithmetic
from search_spaces.recipe import Block, Blocks, Hop, PathBody, Recipe, Source, alone
from search_spaces.tensors import in_layer, layer_of

MERGE = Blocks(blocks=(Block(layers=(0, 4), operator=TaskArithmetic(weights=(0.5,))),))
HOPS = (Hop(slot=0, layer=0), Hop(slot=1, layer=2, scale=0.5), Hop(slot=1, layer=2, scale=4.0), Hop(slot=0, layer=3))


def recipe(**changes):
    body = {"slots": (0, 1), "hops": HOPS, **changes}
    return Recipe(sources=(Source(path="a"), Source(path="b")), body=PathBody(**body))


def test_canonical_json_reads_back_to_the_same_recipe():
    for slots in ((0, 1), (MERGE, 1), (1, MERGE)):
        made = recipe(slots=slots)
        again = Recipe.model_validate_json(made.to_json())
        assert again == made
        assert again.digest == made.digest


def test_order_scale_and_slots_are_part_of_the_identity():
    others = [
        recipe(hops=HOPS[::-1]),
        recipe(hops=(*HOPS[:3], Hop(slot=0, layer=3, scale=1.0 + 1e-12))),
        recipe(slots=(1, 0)),
        recipe(slots=(MERGE, 1)),
    ]
    assert len({each.digest for each in [recipe(), *others]}) == len(others) + 1


def test_recipes_without_paths_keep_their_digest():
    """Of a recipe as earlier versions wrote it."""
    made = Recipe(sources=(Source(path="a", digest="1"), Source(path="b", digest="2")), body=MERGE)
    assert made.digest == "8d049211212c219b659b3d44ab8a856156bfe37a1e82040316062b99b334710c"


def test_stream_scales_are_running_products():
    assert recipe().body.stream_scales == (1.0, 0.5, 2.0, 2.0)
    assert recipe().body.scaled
    assert not recipe(hops=HOPS[:1]).body.scaled


def test_a_slot_is_a_recipe_of_its_own():
    assert recipe(slots=(MERGE, 1)).slot(0).body == MERGE
    assert recipe().slot(1).body == alone(1, 2)
    with pytest.raises(TypeError, match="only a path has slots"):
        recipe(slots=(MERGE, 1)).slot(0).slot(0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hops": ()}, "at least one layer"),
        ({"slots": ()}, "at least 1 item"),
        ({"hops": (Hop(slot=2, layer=0),)}, "hop 0 visits slot 2, but there are 2 slots"),
        ({"hops": (*HOPS, Hop(slot=0, layer=0, scale=0.0))}, "hop 4: a scale of 0"),
        ({"hops": (Hop(slot=0, layer=0, scale=-1.0),)}, "hop 0: scale -1 is negative; write signed: true"),
        ({"slots": (0, 2)}, "a slot is source 2, but there are 2 sources"),
        ({"slots": (0, -1)}, "a slot is source -1"),
        ({"slots": (MERGE.model_copy(update={"blocks": alone(0, 3).blocks}), 1)}, "one of weights per source"),
    ],
)
def test_what_is_no_path(changes, match):
    with pytest.raises(ValidationError, match=match):
        recipe(**changes)


def test_negative_scales_are_allowed_when_asked_for():
    made = recipe(hops=(Hop(slot=0, layer=0, scale=-2.0), Hop(slot=1, layer=1, scale=-3.0)), signed=True)
    assert made.body.stream_scales == (-2.0, 6.0)


def test_tensors_move_to_other_layers():
    assert in_layer("model.layers.3.mlp.up_proj.weight", 17) == "model.layers.17.mlp.up_proj.weight"
    assert in_layer("h.0.attn.c_proj.bias", 2) == "h.2.attn.c_proj.bias"
    assert layer_of(in_layer("model.layers.3.mlp.up_proj.weight", 17), 20) == 17
    with pytest.raises(ValueError, match="belongs to no layer"):
        in_layer("model.norm.weight", 1)
