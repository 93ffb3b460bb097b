"""Which device each tensor of a spread model lies on."""

from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import NotEnoughRoom
from evomerge.merging.placement import Placement, gpu_names, place

GIB = 2**30


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, int], int]:
    """Sizes of tensors, two a layer, in the order of a checkpoint; and the number of layers."""
    size = st.integers(1, 50)
    layers = draw(st.integers(1, 7))
    sizes = {"model.embed_tokens.weight": draw(size)}
    for layer in range(layers):
        sizes |= {f"model.layers.{layer}.{part}.weight": draw(size) for part in ("self_attn.q_proj", "mlp.up_proj")}
    sizes["model.norm.weight"] = 1
    if draw(st.booleans()):  # else the embeddings are the head
        sizes["lm_head.weight"] = draw(size)
    return sizes, layers


ROOMS = st.lists(st.integers(0, 400), min_size=2, max_size=4).map(
    lambda rooms: [(f"cuda:{i}", room) for i, room in enumerate(rooms)]
)


def load(sizes: dict[str, int], placement: Placement) -> list[int]:
    used = [0] * len(placement.devices)
    for name, size in sizes.items():
        used[placement.position(name)] += size
    return used


def possible(sizes: dict[str, int], layers: int, rooms: list[tuple[str, int]]) -> float:
    """By trying all: the least share of its room that the fullest device has."""
    shares = []
    for cuts in combinations_with_replacement(range(layers + 1), len(rooms) - 1):
        stops = (*cuts, layers)
        used = load(sizes, Placement(tuple(n for n, _ in rooms), stops, (), ()))
        shares.append(max(one / (room or 0.5) for one, (_, room) in zip(used, rooms, strict=True)))
    return min(shares)


@given(model=models(), rooms=ROOMS)
def test_every_tensor_has_one_place_within_its_room_or_nothing_is_placed(model, rooms):
    sizes, layers = model
    least = possible(sizes, layers, rooms)
    if least > 1.0:
        with pytest.raises(NotEnoughRoom):
            place(sizes, layers=layers, rooms=rooms)
        return
    placement = place(sizes, layers=layers, rooms=rooms)
    used = load(sizes, placement)
    assert tuple(used) == placement.used
    assert sum(used) == sum(sizes.values())
    assert all(one <= room for one, (_, room) in zip(used, rooms, strict=True))
    assert max(one / (room or 0.5) for one, (_, room) in zip(used, rooms, strict=True)) == least
    order = [placement.position(name) for name in sizes if ".layers." in name]
    assert order == sorted(order), "neighbouring layers are together"
    assert order[::2] == order[1::2], "no layer is split"
    assert {placement.position(name) for name in sizes if ".layers." not in name} == {0}


def test_equal_devices_have_equal_shares():
    sizes = {f"h.{layer}.w": GIB for layer in range(12)} | {"wte.weight": 3 * GIB}
    placement = place(sizes, layers=12, rooms=[(name, 8 * GIB) for name in gpu_names(3.0)])
    assert placement.used == (5 * GIB, 5 * GIB, 5 * GIB)
    assert placement.lines() == [
        "cuda:0 5.00 of 8.00 GiB free: embeddings, norm, head, layers 0 to 1",
        "cuda:1 5.00 of 8.00 GiB free: layers 2 to 6",
        "cuda:2 5.00 of 8.00 GiB free: layers 7 to 11",
    ]


def test_what_does_not_fit_is_named_with_the_room():
    sizes = {f"model.layers.{layer}.w": 2 * GIB for layer in range(4)} | {"model.embed_tokens.weight": 3 * GIB}
    with pytest.raises(NotEnoughRoom) as refusal:
        place(sizes, layers=4, rooms=[("cuda:0", 4 * GIB), ("cuda:1", 7 * GIB)])
    text = str(refusal.value)
    for part in (
        "cluster.gpus_per_worker: one copy of the model needs 11.00 GiB",
        "3.00 GiB of embeddings, norm and head on the first device",
        "4 layers of up to 2.00 GiB",
        "4.00 GiB on cuda:0, 7.00 GiB on cuda:1",
        "give each worker more GPUs",
    ):
        assert part in text
