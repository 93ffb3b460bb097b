"""Operators on single elements, rows and columns against their definitions, plainly and in float64 on whole tensors."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.errors import CandidateFailed
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.geometry import karcher_coefficients
from evomerge.merging.order_statistics import order_statistics
from search_spaces.operators import (
    ArceeFusion,
    Karcher,
    Linear,
    ModelStock,
    NearSwap,
    NuSlerp,
    Operator,
    Passthrough,
    Ram,
    RamPlus,
)
from search_spaces.recipe import Recipe

RecipeOf = Callable[..., Recipe]
LIGHT = settings(max_examples=10, deadline=None)
MATRIX = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def check(engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf) -> Callable[..., None]:
    """Return a comparison of an operator with a formula of base and task vectors, on every sixth tensor."""

    def compare(operator: Operator, formula: Callable[[Tensor, list[Tensor]], Tensor], *, atol: float = 6e-8) -> None:
        for name in engine.order[::6]:
            base, *experts = (checkpoint.tensor(name) for checkpoint in checkpoints)
            expected = formula(base.double(), [(expert - base).double() for expert in experts])
            found = engine.merge_tensor(recipe_of(operator), name).double()
            torch.testing.assert_close(found, expected, rtol=3e-7, atol=atol)

    return compare


@given(reach=st.floats(0, 0.05))
@LIGHT
def test_near_swap_moves_no_element_further(check: Callable[..., None], reach: float) -> None:
    check(NearSwap(source=2, reach=reach), lambda base, taus: base + taus[1].sign() * taus[1].abs().clamp(max=reach))


@given(epsilon=st.floats(0, 0.02))
@LIGHT
def test_ram(check: Callable[..., None], epsilon: float) -> None:
    def formula(base: Tensor, taus: list[Tensor]) -> Tensor:
        moved = [(tau.abs().float() > epsilon).double() for tau in taus]
        count = sum(moved, torch.zeros_like(base))
        return base + sum(m * tau for m, tau in zip(moved, taus, strict=True)) / count.clamp(min=1)

    check(Ram(epsilon=epsilon), formula)


@given(epsilon=st.floats(0, 0.03), boost=st.floats(-1, 1), cap=st.floats(0, 3))
@LIGHT
def test_ram_plus(check: Callable[..., None], epsilon: float, boost: float, cap: float) -> None:
    def formula(base: Tensor, taus: list[Tensor]) -> Tensor:
        moved = torch.stack([tau.abs().float() > epsilon for tau in taus])
        count = moved.sum(0)
        total = torch.zeros_like(base)
        for mask, tau in zip(moved, taus, strict=True):
            alone, shared = mask & (count == 1), mask & (count > 1)
            both = int(shared.sum()), int(alone.sum())
            ratio = 0.0 if not both[0] else both[0] / both[1] if both[1] else float("inf")
            total += tau * alone * (1 + boost * min(ratio, cap)) + tau * shared / count.clamp(min=1)
        return base + total

    check(RamPlus(epsilon=epsilon, boost=boost, boost_cap=cap), formula)


@given(fence=st.floats(0, 3))
@LIGHT
def test_arcee_fusion(check: Callable[..., None], fence: float) -> None:
    def formula(base: Tensor, taus: list[Tensor]) -> Tensor:
        ours, theirs = torch.log_softmax(base + taus[2], -1), torch.log_softmax(base, -1)
        divergence = (ours.exp() * (ours - theirs)).sum(-1, keepdim=True).float()
        importance = taus[2].abs().float() * divergence
        ordered = importance.flatten().sort().values.double()
        low, median, high = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
        return base + taus[2] * (importance >= (median + fence * (high - low)).float())

    check(ArceeFusion(source=3, fence=fence), formula)


@given(scale=st.floats(-2, 2), source=st.integers(0, 3))
@LIGHT
def test_passthrough_is_the_source(check: Callable[..., None], scale: float, source: int) -> None:
    check(
        Passthrough(source=source, scale=scale),
        lambda base, taus: scale * (base + taus[source - 1] if source else base),
        atol=6e-8,
    )


def test_passthrough_copies_bits(engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf) -> None:
    recipe = recipe_of(Passthrough(source=2))
    assert all(torch.equal(engine.merge_tensor(recipe, name), checkpoints[2].tensor(name)) for name in engine.order)


def by_vector(dim: int, base: Tensor, *taus: Tensor) -> list[list[Tensor]]:
    """The task vectors of every row (dim -1) or column (0) of a matrix; a tensor of one dimension is one vector."""
    if base.ndim == 1:
        return [list(taus)]
    return [list(parts) for parts in zip(*(tau.unbind(0 if dim == -1 else 1) for tau in taus), strict=True)]


def arc(one: Tensor, two: Tensor, t: float) -> Tensor:
    angle = torch.arccos((one @ two / one.norm() / two.norm()).clamp(-1, 1))
    return (torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * two) / torch.sin(angle)


@given(t=st.floats(-0.5, 1.5), vectors=st.sampled_from(["rows", "columns"]))
@LIGHT
def test_nuslerp_of_rows_and_columns(check: Callable[..., None], t: float, vectors: str) -> None:
    dim = -1 if vectors == "rows" else 0

    def formula(base: Tensor, taus: list[Tensor]) -> Tensor:
        parts = [arc(one, two, t) for one, two in by_vector(dim, base, taus[0], taus[2])]
        return base + (parts[0] if base.ndim == 1 else torch.stack(parts, 0 if dim == -1 else 1))

    check(NuSlerp(between=(1, 3), t=t, vectors=vectors), formula)


@given(power=st.floats(0.1, 3))
@LIGHT
def test_model_stock_of_rows(check: Callable[..., None], power: float) -> None:
    def stock(taus: list[Tensor]) -> Tensor:
        pairs = [(a @ b / a.norm() / b.norm()).item() for a, b in combinations(taus, 2)]
        c = max(0.0, sum(pairs) / len(pairs))
        return (len(taus) * c / (1 + (len(taus) - 1) * c)) ** power * sum(taus, torch.zeros_like(taus[0])) / len(taus)

    def formula(base: Tensor, taus: list[Tensor]) -> Tensor:
        parts = [stock(row) for row in by_vector(-1, base, *taus)]
        return base + (parts[0] if base.ndim == 1 else torch.stack(parts))

    check(ModelStock(power=power, filter_wise=True), formula, atol=2e-7)


@given(weights=st.tuples(*[st.floats(0, 2)] * 4).filter(lambda w: sum(w) > 0.1))
@LIGHT
def test_karcher_is_where_the_pulls_cancel(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, weights: tuple[float, ...]
) -> None:
    """The gradient of the sum of squared angles vanishes there, and the length is the mean length."""
    merged = engine.merge_tensor(recipe_of(Karcher(weights=weights, max_iter=50, tol=1e-9)), MATRIX).double().flatten()
    sources = [checkpoint.tensor(MATRIX).double().flatten() for checkpoint in checkpoints]
    shares = [weight / sum(weights) for weight in weights]
    length = sum(share * source.norm() for share, source in zip(shares, sources, strict=True))
    torch.testing.assert_close(merged.norm(), length, rtol=1e-6, atol=0)
    mean, pull = merged / merged.norm(), torch.zeros_like(merged)
    for share, source in zip(shares, sources, strict=True):
        along = (unit := source / source.norm()) @ mean
        rest = unit - along * mean
        pull += share * torch.arccos(along.clamp(-1, 1)) * rest / rest.norm().clamp(min=1e-12)
    assert pull.norm() < 1e-6


def test_karcher_of_one_source_is_it_and_of_opposite_ones_fails(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf
) -> None:
    one = engine.merge_tensor(recipe_of(Karcher(weights=(0, 0, 3, 0))), MATRIX)
    torch.testing.assert_close(one, checkpoints[2].tensor(MATRIX), rtol=1e-6, atol=1e-9)
    with pytest.raises(CandidateFailed, match="all weights are zero"):
        engine.merge_tensor(recipe_of(Karcher(weights=(0, 0, 0, 0))), MATRIX)
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).numpy().astype(float)
    assert karcher_coefficients(opposite, torch.tensor([1.0, 1.0]).numpy(), steps=10, tol=1e-5) is None


def test_equal_karcher_weights_scale_out(engine: MergeEngine, recipe_of: RecipeOf) -> None:
    one, two = (engine.merge_tensor(recipe_of(Karcher(weights=(w, w, w, 0))), MATRIX) for w in (1.0, 7.0))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)
    plain = engine.merge_tensor(recipe_of(Linear(weights=(1, 1, 1, 0))), MATRIX)
    assert 1e-4 < float((one - plain).norm() / plain.norm()) < 0.1  # longer than the mean, and near it


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    pieces=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_order_statistics_are_those_of_sorting(values: list[float], pieces: int) -> None:
    whole = torch.tensor(values, dtype=torch.float32)
    ranks = [0, len(values) // 3, len(values) - 1]
    assert order_statistics(lambda: whole.split(pieces), ranks) == [whole.sort().values[rank].item() for rank in ranks]


@pytest.mark.parametrize(
    ("operator", "match"),
    [
        (Passthrough(source=4), "position of a source .of 4 sources., got 4"),
        (NearSwap(source=0, reach=0.1), "position of an expert"),
        (ArceeFusion(source=9), "position of an expert"),
        (Karcher(weights=(1, 1)), "one of weights per source"),
    ],
)
def test_positions_that_do_not_exist_are_refused(recipe_of: RecipeOf, operator: Operator, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        recipe_of(operator)


@pytest.mark.parametrize("operator", [NearSwap(source=1, reach=0.1), ArceeFusion(source=1), Ram(), RamPlus()])
def test_a_missing_base_is_refused(recipe_of: RecipeOf, operator: Operator) -> None:
    with pytest.raises(ValueError, match="needs a base"):
        recipe_of(operator, base=None)
