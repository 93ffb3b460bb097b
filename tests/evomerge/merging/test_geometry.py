"""Operators that depend on inner products, against their definitions in float64 on whole tensors."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.errors import CandidateFailed
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.geometry import model_stock_shares, multislerp_coefficients, nuslerp_coefficients
from search_spaces.operators import ModelStock, MultiSlerp, NuSlerp
from search_spaces.recipe import Block, Blocks, Recipe, Source

LIGHT = settings(max_examples=15, deadline=None)


def cosine(one: Tensor, two: Tensor) -> float:
    size = one.norm() * two.norm()
    return 0.0 if size == 0 else (one.flatten() @ two.flatten() / size).item()


def model_stock(base: Tensor, deltas: list[Tensor], power: float) -> Tensor:
    taus = [delta.double() for delta in deltas]
    c = max(0.0, sum(cosine(a, b) for a, b in combinations(taus, 2)) / len(list(combinations(taus, 2))))
    t = len(taus) * c / (1 + (len(taus) - 1) * c)
    return base.double() + t**power * sum(taus, torch.zeros_like(taus[0])) / len(taus)


@pytest.fixture(scope="module", params=[0.0, 0.004, 0.02], ids=["unrelated", "related", "close"])
def folders(request: pytest.FixtureRequest, make_family: Callable[..., list[Path]]) -> list[Path]:
    return make_family(common=request.param)


@pytest.fixture(scope="module")
def opened(folders: list[Path]) -> list[Checkpoint]:
    return [Checkpoint.open(folder) for folder in folders]


@pytest.fixture(scope="module")
def merger(opened: list[Checkpoint]) -> MergeEngine:
    return MergeEngine(opened, names=opened[0].names)


@pytest.fixture(scope="module")
def recipe(folders: list[Path]) -> Callable[..., Recipe]:
    def make(operator: object, **changes: object) -> Recipe:
        sources = tuple(Source(path=str(folder)) for folder in folders)
        body = Blocks(blocks=(Block(layers=(0, 4), operator=operator),))
        return Recipe(**({"sources": sources, "dtype": "float32", "body": body} | changes))

    return make


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=6e-8)


@given(power=st.floats(0.1, 3))
@LIGHT
def test_model_stock(
    merger: MergeEngine, opened: list[Checkpoint], recipe: Callable[..., Recipe], power: float
) -> None:
    made = recipe(ModelStock(power=power))
    for name in merger.order[::5]:
        base, *experts = (checkpoint.tensor(name) for checkpoint in opened)
        close(merger.merge_tensor(made, name), model_stock(base, [e - base for e in experts], power))


@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.floats(-8, 4))
@LIGHT
def test_model_stock_stays_between_base_and_mean_whatever_the_length(count: int, seed: int, size: float) -> None:
    rows = np.random.default_rng(seed).standard_normal((count, 6))
    share = model_stock_shares(rows @ rows.T)
    assert 0.0 <= share <= 1.0
    assert model_stock_shares(rows @ rows.T * 100.0**size) == pytest.approx(share, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_model_stock_keeps_the_base_where_task_vectors_disagree(count: int) -> None:
    """The formula alone gives -0.5, -2 and +4 here: away from the mean, and far beyond it."""
    assert model_stock_shares(np.full((count, count), -0.2) + 1.2 * np.eye(count)) == 0.0


def test_model_stock_of_equal_experts_is_that_expert() -> None:
    assert model_stock_shares(np.ones((3, 3))) == pytest.approx(1.0, rel=1e-15)
    assert model_stock_shares(np.zeros((3, 3))) == 0.0


def test_model_stock_needs_a_base_and_two_experts(recipe: Callable[..., Recipe], folders: list[Path]) -> None:
    with pytest.raises(ValueError, match="needs a base"):
        recipe(ModelStock(), base=None)
    with pytest.raises(ValueError, match="at least 2 experts, got 1"):
        recipe(ModelStock(), sources=tuple(Source(path=str(folder)) for folder in folders[:2]))


def multislerp(base: Tensor, deltas: list[Tensor], weights: tuple[float, ...], normalize: bool) -> Tensor:
    """As published: project to the tangent space of the mean direction, average there, project back."""
    taus = [delta.double() for delta in deltas]
    shares = [weight / sum(weights) if normalize else weight for weight in weights]
    units = [tau / tau.norm() for tau in taus]
    mean = sum((w * u for w, u in zip(shares, units, strict=True)), torch.zeros_like(taus[0]))
    mean = mean / mean.norm()
    tangent = sum(
        (w * (u - (u * mean).sum() * mean) for w, u in zip(shares, units, strict=True)), torch.zeros_like(mean)
    )
    size = tangent.norm() + 1e-12
    point = torch.cos(size) * mean + torch.sin(size) * tangent / size
    return base.double() + point * sum(w * tau.norm() for w, tau in zip(shares, taus, strict=True))


@given(weights=st.tuples(*[st.floats(0.01, 2)] * 3), normalize=st.booleans())
@LIGHT
def test_multislerp(
    merger: MergeEngine,
    opened: list[Checkpoint],
    recipe: Callable[..., Recipe],
    weights: tuple[float, ...],
    normalize: bool,
) -> None:
    made = recipe(MultiSlerp(weights=weights, normalize=normalize))
    for name in merger.order[::5]:
        base, *experts = (checkpoint.tensor(name) for checkpoint in opened)
        close(merger.merge_tensor(made, name), multislerp(base, [e - base for e in experts], weights, normalize))


@given(t=st.floats(-0.5, 1.5), between=st.sampled_from([(1, 2), (3, 1), (2, 3)]))
@LIGHT
def test_nuslerp(
    merger: MergeEngine, opened: list[Checkpoint], recipe: Callable[..., Recipe], t: float, between: tuple[int, int]
) -> None:
    made = recipe(NuSlerp(between=between, t=t))
    for name in merger.order[::5]:
        base = opened[0].tensor(name)
        one, two = ((opened[i].tensor(name) - base).double() for i in between)
        angle = np.arccos(cosine(one, two))
        parts = np.sin((1 - t) * angle) / np.sin(angle) * one + np.sin(t * angle) / np.sin(angle) * two
        close(merger.merge_tensor(made, name), base.double() + parts)


@pytest.mark.parametrize("cosine", [1.0, -1.0, 1.0 - 1e-15])
def test_nuslerp_of_parallel_vectors_is_linear(cosine: float) -> None:
    assert nuslerp_coefficients(np.array([[1.0, cosine], [cosine, 1.0]]), 0.3) == pytest.approx((0.7, 0.3), rel=1e-6)
    assert tuple(nuslerp_coefficients(np.array([[0.0, 0.0], [0.0, 4.0]]), 0.3)) == (0.7, 0.3)


def test_directions_that_cancel_fail_the_candidate(merger: MergeEngine, recipe: Callable[..., Recipe]) -> None:
    opposite = np.array([[1.0, -2.0], [-2.0, 4.0]])
    assert multislerp_coefficients(opposite, np.array([1.0, 1.0])) is None
    assert multislerp_coefficients(opposite, np.array([1.0, 0.5])) is not None
    assert multislerp_coefficients(np.zeros((2, 2)), np.ones(2)).tolist() == [0.0, 0.0]
    with pytest.raises(CandidateFailed, match="the weights .* cancel"):
        merger.merge_tensor(recipe(MultiSlerp(weights=(1, -1, 0))), "model.norm.weight")


def test_nuslerp_is_between_experts(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(ValueError, match="between two experts"):
        recipe(NuSlerp(between=(0, 1), t=0.5))
