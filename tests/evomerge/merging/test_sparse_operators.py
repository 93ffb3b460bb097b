"""Breadcrumbs against its definition, written plainly and in float64 on whole tensors."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging import selection
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from search_spaces.operators import Breadcrumbs, BreadcrumbsTies, TaskArithmetic
from search_spaces.recipe import Recipe

RecipeOf = Callable[..., Recipe]
LIGHT = settings(max_examples=15, deadline=None)
SIGNED = st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3)
THREE_SHARES = st.tuples(*[st.floats(0, 1)] * 3)


def crumbs(delta: Tensor, density: float, gamma: float) -> Tensor:
    """Sort; cut off the top; keep the next int(density n)."""
    flat = delta.double().flatten()
    count = int(density * flat.numel())
    dropped = min(int(gamma * flat.numel()), flat.numel() - count)
    kept = torch.argsort(flat.abs(), descending=True, stable=True)[dropped : dropped + count]
    out = torch.zeros_like(flat)
    out[kept] = flat[kept]
    return out.view_as(delta)


def elected(parts: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    stack = torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)])
    majority = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    return (stack * (stack.sign() == majority)).sum(0)


def task_vectors(checkpoints: list[Checkpoint], name: str) -> tuple[Tensor, list[Tensor]]:
    base, *experts = (checkpoint.tensor(name) for checkpoint in checkpoints)
    return base, [expert - base for expert in experts]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=6e-8)


@given(weights=st.tuples(SIGNED, SIGNED, SIGNED), densities=THREE_SHARES, gammas=THREE_SHARES, ties=st.booleans())
@LIGHT
def test_breadcrumbs(
    engine: MergeEngine,
    checkpoints: list[Checkpoint],
    recipe_of: RecipeOf,
    weights: tuple[float, ...],
    densities: tuple[float, ...],
    gammas: tuple[float, ...],
    ties: bool,
) -> None:
    kind = BreadcrumbsTies if ties else Breadcrumbs
    recipe = recipe_of(kind(weights=weights, densities=densities, gammas=gammas, scale=0.8))
    for name in engine.order[::7]:
        base, deltas = task_vectors(checkpoints, name)
        parts = [crumbs(*each) for each in zip(deltas, densities, gammas, strict=True)]
        signs = elected(parts, weights)
        plain = sum((w * part for w, part in zip(weights, parts, strict=True)), torch.zeros_like(signs))
        close(engine.merge_tensor(recipe, name), base.double() + 0.8 * (signs if ties else plain))


@given(density=st.floats(0.05, 1), gamma=st.floats(0, 0.9))
@LIGHT
def test_breadcrumbs_rescaled_keeps_the_l1_norm(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, density: float, gamma: float
) -> None:
    operator = Breadcrumbs(weights=(1, 0, 0), densities=(density, 1, 1), gammas=(gamma, 0, 0), rescale=True)
    for name in engine.order[::7]:
        base, (delta, *_) = task_vectors(checkpoints, name)
        part = crumbs(delta, density, gamma)
        part *= delta.double().abs().sum() / part.abs().sum()
        close(engine.merge_tensor(recipe_of(operator), name), base.double() + part)


@pytest.mark.parametrize("gamma", [0.0, 0.01])
def test_breadcrumbs_keeps_its_share_of_small_tensors(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, gamma: float
) -> None:
    """Earlier mergekits kept nothing where gamma cuts off less than one element, as in every norm."""
    recipe = recipe_of(Breadcrumbs(weights=(1, 0, 0), densities=(0.5, 1, 1), gammas=(gamma, 0, 0)))
    base = checkpoints[0].tensor("model.norm.weight")
    moved = engine.merge_tensor(recipe, "model.norm.weight") != base
    assert int(moved.sum()) == base.numel() // 2


def test_breadcrumbs_of_everything_is_task_arithmetic(engine: MergeEngine, recipe_of: RecipeOf) -> None:
    weights = (0.5, -0.2, 0.3)
    one = recipe_of(Breadcrumbs(weights=weights, densities=(1, 1, 1), gammas=(0.5, 0, 1)))
    two = recipe_of(TaskArithmetic(weights=weights))
    assert all(torch.equal(engine.merge_tensor(one, name), engine.merge_tensor(two, name)) for name in engine.order)


@pytest.mark.parametrize(("skipped", "count"), [(0, 10), (0, 1000), (1, 999), (10, 1), (300, 400), (999, 1), (80, 500)])
def test_bands_of_large_tensors_are_exact(monkeypatch: pytest.MonkeyPatch, skipped: int, count: int) -> None:
    monkeypatch.setattr(selection, "SMALL", 0)
    monkeypatch.setattr(selection, "_CHUNK", 64)
    base, expert = torch.zeros(1000), torch.randint(-9, 10, (1000,), generator=torch.Generator().manual_seed(0)) / 8
    keep = selection.Selector([lambda _: base, lambda _: expert], 0).band(1, "w", skipped, count)
    kept = torch.ones(1000)
    if keep is not None:
        pieces = [(i, expert[i : i + 77]) for i in range(0, 1000, 77)]
        kept = torch.cat([keep.mask(i, min(i + 77, 1000), part, torch.empty_like(part)) for i, part in pieces])
    assert torch.equal((expert * kept).double(), crumbs(expert, count / 1000, skipped / 1000))
