"""Breadcrumbs, DELLA and SCE against their definitions, written plainly and in float64 on whole tensors."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging import selection
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.masks import MaskKey, draws, mask_keys
from evomerge.merging.ranked import rank_limits
from search_spaces.operators import Breadcrumbs, BreadcrumbsTies, DareLinear, Della, DellaLinear, Sce, TaskArithmetic
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


def magprune(delta: Tensor, density: float, spread: float, key: MaskKey, name: str) -> Tensor:
    """Element by element: its rank in its row, its probability, its draw as a number from 0 to 1."""
    rows = delta.double().view(-1, delta.shape[-1])
    uniform = ((draws(key, name, 0, delta.numel()).double() + 2**31) / 2**32).view_as(rows)
    width = rows.shape[1]
    kept = torch.zeros_like(rows)
    for row, values in enumerate(rows.abs()):
        for rank, column in enumerate(torch.argsort(values, stable=True).tolist()):
            place = 2 * rank / (width - 1) - 1 if width > 1 else 0.0
            chance = density + spread * min(density, 1 - density) * place
            kept[row, column] = float(uniform[row, column] < chance)
    return (rows * kept).view_as(delta)


@given(weights=st.tuples(SIGNED, SIGNED, SIGNED), densities=THREE_SHARES, spreads=THREE_SHARES, ties=st.booleans())
@LIGHT
def test_della(
    engine: MergeEngine,
    checkpoints: list[Checkpoint],
    recipe_of: RecipeOf,
    weights: tuple[float, ...],
    densities: tuple[float, ...],
    spreads: tuple[float, ...],
    ties: bool,
) -> None:
    fixed = {"normalize": False, "rescale": False, "scale": 0.8}
    recipe = recipe_of((Della if ties else DellaLinear)(weights=weights, densities=densities, spreads=spreads, **fixed))
    keys = mask_keys(0, recipe.sources)[1:]
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.norm.weight"):
        base, deltas = task_vectors(checkpoints, name)
        parts = [magprune(*each, name) for each in zip(deltas, densities, spreads, keys, strict=True)]
        signs = elected(parts, weights)
        plain = sum((w * part for w, part in zip(weights, parts, strict=True)), torch.zeros_like(signs))
        close(engine.merge_tensor(recipe, name), base.double() + 0.8 * (signs if ties else plain))


@given(density=st.floats(0.05, 0.95), spread=st.floats(0, 1))
@LIGHT
def test_della_rescaled_keeps_the_l1_norm(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, density: float, spread: float
) -> None:
    recipe = recipe_of(DellaLinear(weights=(1, 0, 0), densities=(density, 1, 1), spreads=(spread, 0, 0)))
    key = mask_keys(0, recipe.sources)[1]
    name = "model.layers.1.self_attn.q_proj.weight"
    base, (delta, *_) = task_vectors(checkpoints, name)
    part = magprune(delta, density, spread, key, name)
    part *= delta.double().abs().sum() / part.abs().sum() if part.any() else 1.0
    torch.testing.assert_close(engine.merge_tensor(recipe, name).double(), base.double() + part, rtol=1e-6, atol=3e-7)


def test_della_without_spread_is_dare(engine: MergeEngine, recipe_of: RecipeOf) -> None:
    shape = {"weights": (1.0, 0.5, -0.3), "densities": (0.3, 1, 0.8), "rescale": False}
    one, two = recipe_of(DareLinear(**shape)), recipe_of(DellaLinear(**shape, spreads=(0, 0.5, 0)))
    for name in engine.order:  # DELLA's kernel is not the compiled one, so the last bit may differ
        torch.testing.assert_close(engine.merge_tensor(one, name), engine.merge_tensor(two, name), rtol=1e-6, atol=1e-7)


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.floats(0, 1), st.integers(1, 50))
def test_probabilities_of_della_grow_with_rank_and_density(one: float, two: float, spread: float, width: int) -> None:
    """Masks of neighbouring densities nest; every density and spread gives probabilities from 0 to 1."""
    low, high = (rank_limits(density, spread, width) for density in sorted((one, two)))
    assert (low <= high).all() and (low.diff() >= 0).all()
    assert low.min() >= -(2**31) and high.max() <= 2**31


@pytest.mark.parametrize("shape", [(40, 25), (1000,), (1000, 1), (1, 1000), (2, 500), (10, 4, 25)])
def test_rows_of_large_tensors_are_ranked_whole(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    base, expert = torch.zeros(1000), torch.randn(1000, generator=generator)
    key = MaskKey(3, "e")

    def kept(small: int) -> Tensor:
        monkeypatch.setattr(selection, "SMALL", small)
        selector = selection.Selector([lambda _: base, lambda _: expert], 0, {"w": shape})
        keep = selector.drawn_by_rank(1, "w", 0.4, 0.9, key)
        assert keep is not None
        pieces = [(i, expert[i : i + 77]) for i in range(0, 1000, 77)]
        return torch.cat([keep.mask(i, min(i + 77, 1000), part, torch.empty_like(part)) for i, part in pieces])

    expected = (magprune(expert.view(shape), 0.4, 0.9, key, "w").flatten() != 0).float()
    assert torch.equal(kept(0), expected)
    assert torch.equal(kept(1 << 16), expected)


def sce(base: Tensor, deltas: list[Tensor], share: float) -> Tensor:
    taus = torch.stack(deltas).double()
    varied = taus.var(dim=0, unbiased=False).flatten()
    kept = torch.zeros_like(varied)
    kept[torch.argsort(varied, descending=True, stable=True)[: int(share * int(torch.count_nonzero(varied)))]] = 1.0
    taus = taus * (kept.view_as(base) if share < 1 else 1.0)
    energy = taus.square().flatten(1).sum(1)
    weights = (energy / energy.sum().clamp(min=1e-300)).view(-1, *[1] * base.ndim)
    agree = weights * (taus.sign() == torch.where(taus.sum(0) >= 0, 1.0, -1.0))
    divisor = agree.sum(0)
    return base.double() + (taus * agree).sum(0) / torch.where(divisor == 0, 1.0, divisor)


@given(share=st.floats(0, 1))
@LIGHT
def test_sce(engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, share: float) -> None:
    for name in engine.order[::7]:
        expected = sce(*task_vectors(checkpoints, name), share)
        close(engine.merge_tensor(recipe_of(Sce(select_topk=share)), name), expected)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_sce_follows_the_length_of_the_task_vectors(size: float) -> None:
    """mergekit gives equal shares to task vectors whose mean squares sum to less than 1e-6."""
    one = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 1e-3 * size
    selector = selection.Selector([lambda _: torch.zeros(4000), lambda _: one, lambda _: 3 * one], 0)
    low, high = selector.energies((1, 2), "w", 4000, None)
    assert high / low == pytest.approx(9.0, rel=1e-6)


def test_sce_of_a_scale_is_that_much_of_the_way(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    base = checkpoints[0].tensor(name)
    whole, half, none = (engine.merge_tensor(recipe_of(Sce(scale=s)), name) - base for s in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half, whole / 2, rtol=1e-4, atol=1e-8)
    assert not none.any() and whole.any()


def test_sce_selects_the_same_elements_of_large_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randint(-3, 4, (3, 1000), generator=torch.Generator().manual_seed(0)) / 8
    parts = [lambda _: torch.zeros(1000), *(lambda _, row=row: row for row in values)]
    found = []
    for small in (0, 1 << 16):
        monkeypatch.setattr(selection, "SMALL", small)
        monkeypatch.setattr(selection, "_CHUNK", 64 if small == 0 else 1 << 16)
        selector = selection.Selector(parts, 0)
        count, keep = selector.varied((1, 2, 3), "w", 0.3)
        assert keep is not None
        found.append(selector.energies((1, 2, 3), "w", count, keep))
    assert found[0] == pytest.approx(found[1], rel=1e-12)
