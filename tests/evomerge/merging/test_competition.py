"""MagMax, Consensus, Localize-and-Stitch, ComPEFT, PCB, whole-model TIES: plainly, in float64, on whole tensors."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.errors import BadRecipe
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.mergekit_config import to_mergekit
from search_spaces.operators import (
    ComPeft,
    Consensus,
    LocalizeStitch,
    MagMax,
    Operator,
    Pcb,
    TaskArithmetic,
    Ties,
)
from search_spaces.recipe import Recipe

RecipeOf = Callable[..., Recipe]
LIGHT = settings(max_examples=10, deadline=None)
WEIGHTS = st.tuples(*[st.floats(-2, 2)] * 3)
SHARES = st.tuples(*[st.floats(0, 1)] * 3)
Parts = dict[str, list[Tensor]]


@pytest.fixture(scope="module")
def taus(engine: MergeEngine, checkpoints: list[Checkpoint]) -> Parts:
    """The task vectors of every tensor, float64 of float32 values."""
    base, *experts = checkpoints
    return {n: [(expert.tensor(n) - base.tensor(n)).double() for expert in experts] for n in engine.order}


@pytest.fixture(scope="module")
def check(engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf) -> Callable[..., None]:
    """Return a comparison of an operator with what it should add to the base, on every seventh tensor."""

    def compare(operator: Operator, added: Callable[[str], Tensor]) -> None:
        for name in engine.order[::7]:
            found = engine.merge_tensor(recipe_of(operator), name).double() - checkpoints[0].tensor(name).double()
            torch.testing.assert_close(found, added(name), rtol=1e-5, atol=2e-7)

    return compare


def top(parts: Parts, expert: int, name: str, density: float, scope: str) -> Tensor:
    """A mask of the largest elements, the first of equals."""
    names = [name] if scope == "tensor" else list(parts)
    whole = torch.cat([parts[each][expert].flatten() for each in names])
    mask = torch.zeros_like(whole)
    count = max(1, int(density * len(whole))) if density > 0 else 0
    mask[torch.argsort(whole.abs(), descending=True, stable=True)[:count]] = 1.0
    pieces = mask.split([parts[each][expert].numel() for each in names])
    return pieces[names.index(name)].view_as(parts[name][expert])


@given(weights=WEIGHTS, scale=st.floats(-2, 2))
@LIGHT
def test_magmax(check: Callable[..., None], taus: Parts, weights: tuple[float, ...], scale: float) -> None:
    def added(name: str) -> Tensor:
        stack = torch.stack([w * tau for w, tau in zip(weights, taus[name], strict=True)])
        return scale * stack.gather(0, stack.abs().argmax(0, keepdim=True))[0]

    check(MagMax(weights=weights, scale=scale), added)


@given(weights=WEIGHTS, selectivity=st.floats(0, 2), votes=st.integers(0, 4))
@LIGHT
def test_consensus(
    engine: MergeEngine,
    checkpoints: list[Checkpoint],
    recipe_of: RecipeOf,
    taus: Parts,
    weights: tuple[float, ...],
    selectivity: float,
    votes: int,
) -> None:
    """Exact but for elements that lie within rounding of the line between a vote and none."""
    for name in engine.order[::7]:
        total = sum(w * tau for w, tau in zip(weights, taus[name], strict=True))
        gaps = [tau.abs() - selectivity * (total - tau).abs() for tau in taus[name]]
        sure = torch.stack([gap.abs() > 1e-7 for gap in gaps]).all(0)
        kept = torch.stack([gap > 0 for gap in gaps]).sum(0) >= votes
        recipe = recipe_of(Consensus(weights=weights, selectivity=selectivity, votes=votes))
        found = engine.merge_tensor(recipe, name).double() - checkpoints[0].tensor(name).double()
        assert sure.double().mean() > 0.9 or selectivity == 1.0 or not any(weights)
        torch.testing.assert_close(found[sure], (total * kept)[sure], rtol=1e-5, atol=2e-7)


@given(weights=WEIGHTS, densities=SHARES, scope=st.sampled_from(["tensor", "model"]))
@LIGHT
def test_localize_and_stitch(
    check: Callable[..., None], taus: Parts, weights: tuple[float, ...], densities: tuple[float, ...], scope: str
) -> None:
    def added(name: str) -> Tensor:
        masks = [top(taus, i, name, density, scope) for i, density in enumerate(densities)]
        total = sum(w * m * tau for w, m, tau in zip(weights, masks, taus[name], strict=True))
        return total / torch.stack(masks).sum(0).clamp(min=1)

    check(LocalizeStitch(weights=weights, densities=densities, scope=scope), added)


@given(weights=WEIGHTS, densities=SHARES, scope=st.sampled_from(["tensor", "model"]))
@settings(max_examples=5, deadline=None)
def test_compeft(
    check: Callable[..., None], taus: Parts, weights: tuple[float, ...], densities: tuple[float, ...], scope: str
) -> None:
    def added(name: str) -> Tensor:
        total = torch.zeros_like(taus[name][0])
        for i, (weight, density) in enumerate(zip(weights, densities, strict=True)):
            names = [name] if scope == "tensor" else list(taus)
            deviation = torch.cat([taus[each][i].flatten() for each in names]).std(correction=0)
            total += weight * deviation * (top(taus, i, name, density, scope) * taus[name][i]).sign()
        return 1.5 * total

    check(ComPeft(weights=weights, densities=densities, scope=scope, scale=1.5), added)


def pcb(rows: Tensor, ratio: float, weights: tuple[float, ...]) -> Tensor:
    """The definition on one flat vector an expert: (K, n) -> (n,)."""
    count, size = rows.shape

    def cut(values: Tensor, low: float, high: float) -> Tensor:
        ends = values.sort(dim=1).values
        first, last = min(size - 1, int(size * low)), max(0, int(size * (1 - high) - 1))
        return values.clamp(ends[:, [first]], ends[:, [last]])

    def rise(values: Tensor) -> Tensor:
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        return torch.where(high > low, (values - low) / (high - low), 0.0)

    sizes = cut(rows.abs(), 1e-4, 1e-4)
    scores = (count * rise(sizes) ** 2).exp() * torch.tanh(rows * rows.sum(0))
    shares = rise(cut(scores, 1 - ratio, 0.0))
    weighted = torch.tensor(weights, dtype=torch.float64)[:, None] * shares * sizes * rows.sign()
    return weighted.sum(0) / shares.sum(0).clamp(min=1e-12)


@given(weights=WEIGHTS, ratio=st.floats(0.05, 1), scope=st.sampled_from(["tensor", "model"]))
@settings(max_examples=4, deadline=None)
def test_pcb(
    engine: MergeEngine,
    checkpoints: list[Checkpoint],
    recipe_of: RecipeOf,
    taus: Parts,
    weights: tuple[float, ...],
    ratio: float,
    scope: str,
) -> None:
    """Shares of almost nothing are mostly rounding errors, so a few elements may differ; the rest agrees closely."""
    for name in engine.order[::9]:
        names = [name] if scope == "tensor" else list(engine.order)
        flat = torch.stack([torch.cat([taus[each][i].flatten() for each in names]) for i in range(3)])
        pieces = pcb(flat, ratio, weights).split([taus[each][0].numel() for each in names])
        expected = pieces[names.index(name)].view_as(taus[name][0])
        recipe = recipe_of(Pcb(weights=weights, ratio=ratio, scope=scope))
        found = engine.merge_tensor(recipe, name).double() - checkpoints[0].tensor(name).double()
        error = (found - expected).abs()
        assert float(error.sum()) <= 0.01 * float(expected.abs().sum()) + 1e-6 * expected.numel()
        assert float((error > 1e-4 * expected.abs() + 3e-7).double().mean()) < 0.02


@given(densities=st.tuples(*[st.floats(0.01, 1)] * 3))
@settings(max_examples=3, deadline=None)
def test_ties_of_the_whole_model(check: Callable[..., None], taus: Parts, densities: tuple[float, ...]) -> None:
    def added(name: str) -> Tensor:
        kept = [
            top(taus, i, name, d, "model") * tau for i, (d, tau) in enumerate(zip(densities, taus[name], strict=True))
        ]
        stack = torch.stack(kept)
        agree = stack.sign() == torch.where(stack.sum(0) >= 0, 1.0, -1.0)
        return (stack * agree).sum(0) / agree.sum(0).clamp(min=1)

    check(Ties(weights=(1, 1, 1), densities=densities, scope="model"), added)


@pytest.mark.parametrize(
    ("operator", "weights"),
    [
        (Consensus(weights=(0.5, -0.2, 0.3), selectivity=0.4, votes=0), (0.5, -0.2, 0.3)),
        (Consensus(weights=(0.5, -0.2, 0.3), selectivity=0.4, votes=4), (0, 0, 0)),
        (LocalizeStitch(weights=(0.6, -0.3, 0.9), densities=(1, 1, 1)), (0.2, -0.1, 0.3)),
        (LocalizeStitch(weights=(1, 1, 1), densities=(0, 0, 0)), (0, 0, 0)),
        (ComPeft(weights=(1, 1, 1), densities=(0, 0, 0)), (0, 0, 0)),
        (MagMax(weights=(0, 0.7, 0)), (0, 0.7, 0)),
    ],
)
def test_limits(engine: MergeEngine, recipe_of: RecipeOf, operator: Operator, weights: tuple[float, ...]) -> None:
    """At the ends of their parameters they are task arithmetic, or the base."""
    for name in engine.order[::7]:
        expected = engine.merge_tensor(recipe_of(TaskArithmetic(weights=weights)), name)
        torch.testing.assert_close(engine.merge_tensor(recipe_of(operator), name), expected, rtol=1e-6, atol=3e-8)


@pytest.mark.parametrize(
    ("operator", "match"),
    [
        (MagMax(weights=(1, 1, 1)), "mergekit has no magmax"),
        (Ties(weights=(1, 1, 1), densities=(1, 1, 1), scope="model"), "trims every tensor by itself"),
    ],
)
def test_mergekit_does_not_have_them(recipe_of: RecipeOf, operator: Operator, match: str) -> None:
    with pytest.raises(BadRecipe, match=match):
        to_mergekit(recipe_of(operator))
