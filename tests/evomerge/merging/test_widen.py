"""WIDEN against its definition, plainly and in float64 on whole tensors."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from search_spaces.operators import Linear, TaskArithmetic, Widen
from search_spaces.recipe import Recipe

RecipeOf = Callable[..., Recipe]
LIGHT = settings(max_examples=8, deadline=None)
NAMES = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]


def scores(significance: Tensor, above: float, calibration: float) -> Tensor:
    """(K, n) -> (K, n)."""
    soft = significance.exp() / significance.exp().sum(0)
    return torch.where(significance > above * significance.mean(1, keepdim=True), calibration, soft)


def ranked(moved: Tensor) -> Tensor:
    return torch.stack([torch.argsort(torch.argsort(row, stable=True), stable=True) / len(row) for row in moved])


def widened(name: str, base: Tensor, taus: list[Tensor], above: float, calibration: float) -> Tensor:
    if base.ndim == 1:
        weights = scores(torch.stack([tau.abs() for tau in taus]), above, calibration)
        return sum(w * tau for w, tau in zip(weights, taus, strict=True))
    if "embed" in name:
        return widened("", base.T, [tau.T for tau in taus], above, calibration).T
    models = [base + tau for tau in taus]
    norms = torch.stack([(model.norm(dim=0) - base.norm(dim=0)).abs() for model in models])
    turns = torch.stack([1 - torch.cosine_similarity(model, base, dim=0) for model in models])
    parts = [scores(ranked(moved), above, calibration) for moved in (norms, turns)]
    return sum(w * tau for w, tau in zip((parts[0] + parts[1]) / 2, taus, strict=True))


@given(above=st.floats(0, 2.5), calibration=st.floats(-1, 2))
@LIGHT
def test_widen(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, above: float, calibration: float
) -> None:
    """Elements within rounding of a limit may fall on either side: of vectors a few, of matrices what ranks there."""
    counts = {size for name in NAMES for size in checkpoints[0].tensor(name).shape}
    assume(all(abs(rank - round(rank)) > 1e-6 for rank in (above * (count - 1) / 2 for count in counts)))
    recipe = recipe_of(Widen(above=above, calibration=calibration, scale=0.8))
    for name in NAMES:
        base, *experts = (checkpoint.tensor(name).double() for checkpoint in checkpoints)
        expected = base + 0.8 * widened(name, base, [expert - base for expert in experts], above, calibration)
        off = (engine.merge_tensor(recipe, name).double() - expected).abs() > 1e-6
        assert float(off.double().mean()) <= (0.05 if base.ndim == 1 else 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_limits(engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, name: str) -> None:
    """Nothing is above a high limit: shares of the softmax sum to 1, so that equal experts give themselves."""
    alike = MergeEngine([checkpoints[0], *[checkpoints[2]] * 3], names=checkpoints[0].names)
    recipe = recipe_of(Widen(above=1e6))
    expected = alike.merge_tensor(recipe_of(Linear(weights=(0, 0, 1, 0))), name)
    torch.testing.assert_close(alike.merge_tensor(recipe, name), expected, rtol=1e-6, atol=1e-8)
    everything = engine.merge_tensor(recipe_of(Widen(above=0.0, calibration=0.7)), name)
    plain = engine.merge_tensor(recipe_of(TaskArithmetic(weights=(0.7, 0.7, 0.7))), name)
    lowest = (everything - plain).abs() > 1e-6  # the column of rank 0, of either expert, is never above
    assert float(lowest.double().mean()) < 0.2
