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

from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.geometry import model_stock_share
from search_spaces.operators import ModelStock
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
    share = model_stock_share(rows @ rows.T)
    assert 0.0 <= share <= 1.0
    assert model_stock_share(rows @ rows.T * 100.0**size) == pytest.approx(share, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_model_stock_keeps_the_base_where_task_vectors_disagree(count: int) -> None:
    """The formula alone gives -0.5, -2 and +4 here: away from the mean, and far beyond it."""
    assert model_stock_share(np.full((count, count), -0.2) + 1.2 * np.eye(count)) == 0.0


def test_model_stock_of_equal_experts_is_that_expert() -> None:
    assert model_stock_share(np.ones((3, 3))) == pytest.approx(1.0, rel=1e-15)
    assert model_stock_share(np.zeros((3, 3))) == 0.0


def test_model_stock_needs_a_base_and_two_experts(recipe: Callable[..., Recipe], folders: list[Path]) -> None:
    with pytest.raises(ValueError, match="needs a base"):
        recipe(ModelStock(), base=None)
    with pytest.raises(ValueError, match="at least 2 experts, got 1"):
        recipe(ModelStock(), sources=tuple(Source(path=str(folder)) for folder in folders[:2]))
