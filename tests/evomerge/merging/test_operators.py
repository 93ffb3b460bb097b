"""Every operator against its definition, written down once more, plainly and in float64, on whole tensors."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging import selection
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from search_spaces.operators import DareLinear, DareTies, Linear, Slerp, TaskArithmetic, Ties
from search_spaces.recipe import Recipe

RecipeOf = Callable[..., Recipe]
SIGNED = st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3)
POSITIVE = st.floats(0.01, 2)
LIGHT = settings(max_examples=15, deadline=None)


def combine(base: Tensor, deltas: list[Tensor], weights: list[float], *, divisor: float = 1.0) -> Tensor:
    total = torch.zeros_like(base, dtype=torch.float64)
    for delta, weight in zip(deltas, weights, strict=True):
        total += weight * delta.double()
    return base.double() + total / divisor


def linear(tensors: list[Tensor], weights: list[float], normalize: bool) -> Tensor:
    total = sum(weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True))
    return total / (sum(weights) if normalize else 1.0)


def slerp(one: Tensor, two: Tensor, t: float) -> Tensor:
    one, two = one.double(), two.double()
    norms = [norm if norm > 1e-8 else 1.0 for norm in (one.norm().item(), two.norm().item())]
    cosine = (one * two).sum().item() / (norms[0] * norms[1])
    if abs(cosine) > 0.9995:
        return (1 - t) * one + t * two
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * two) / math.sin(angle)


def trim(delta: Tensor, density: float) -> Tensor:
    flat = delta.flatten()
    if density <= 0:
        return torch.zeros_like(delta)
    count = max(1, int(density * flat.numel()))
    kept = torch.argsort(flat.abs(), descending=True, stable=True)[:count]
    out = torch.zeros_like(flat)
    out[kept] = flat[kept]
    return out.view_as(delta)


def elect(base: Tensor, deltas: list[Tensor], weights: list[float], *, normalize: bool, scale: float = 1.0) -> Tensor:
    stack = torch.stack([weight * delta.double() for weight, delta in zip(weights, deltas, strict=True)])
    majority = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agree = stack.sign() == majority
    merged = (stack * agree).sum(0)
    if normalize:
        sizes = torch.tensor(weights, dtype=torch.float64).abs().view(-1, *[1] * base.ndim)
        divisor = (sizes * agree).sum(0)
        merged = merged / torch.where(divisor == 0, 1.0, divisor)
    return base.double() + scale * merged


def close(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=3e-7, atol=3e-8 * scale)


def sources(checkpoints: list[Checkpoint], name: str) -> tuple[Tensor, list[Tensor]]:
    base, *experts = (checkpoint.tensor(name) for checkpoint in checkpoints)
    return base, [expert - base for expert in experts]


@given(weights=st.tuples(SIGNED, SIGNED, SIGNED), scale=st.floats(-2, 2))
@LIGHT
def test_task_arithmetic(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, weights: tuple[float, ...], scale: float
) -> None:
    recipe = recipe_of(TaskArithmetic(weights=weights, scale=scale))
    for name in engine.order[::5]:
        base, deltas = sources(checkpoints, name)
        close(engine.merge_tensor(recipe, name), combine(base, deltas, [w * scale for w in weights]))


@given(weights=st.tuples(POSITIVE, POSITIVE, POSITIVE), kind=st.sampled_from([TaskArithmetic, DareLinear]))
@LIGHT
def test_normalize_divides_by_the_sum(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, weights: tuple[float, ...], kind: type
) -> None:
    extra = {"densities": (1, 1, 1)} if kind is DareLinear else {}
    recipe = recipe_of(kind(weights=weights, normalize=True, **extra))
    for name in engine.order[::7]:
        base, deltas = sources(checkpoints, name)
        close(engine.merge_tensor(recipe, name), combine(base, deltas, list(weights), divisor=sum(weights)))


@given(weights=st.tuples(POSITIVE, POSITIVE, POSITIVE, POSITIVE), normalize=st.booleans())
@LIGHT
def test_linear(
    engine: MergeEngine,
    checkpoints: list[Checkpoint],
    recipe_of: RecipeOf,
    weights: tuple[float, ...],
    normalize: bool,
) -> None:
    recipe = recipe_of(Linear(weights=weights, normalize=normalize))
    for name in engine.order[::5]:
        tensors = [checkpoint.tensor(name) for checkpoint in checkpoints]
        close(engine.merge_tensor(recipe, name), linear(tensors, list(weights), normalize), scale=4)


@given(t=st.floats(0, 1), between=st.permutations(range(4)).map(lambda order: tuple(order[:2])))
@LIGHT
def test_slerp(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, t: float, between: tuple[int, int]
) -> None:
    recipe = recipe_of(Slerp(between=between, t=t))
    for name in engine.order[::5]:
        one, two = (checkpoints[i].tensor(name) for i in between)
        close(engine.merge_tensor(recipe, name), slerp(one, two, t))


@given(
    weights=st.tuples(SIGNED, SIGNED, SIGNED),
    densities=st.tuples(*[st.floats(0, 1)] * 3),
    normalize=st.booleans(),
    scale=st.floats(0.1, 2),
)
@LIGHT
def test_ties(
    engine: MergeEngine,
    checkpoints: list[Checkpoint],
    recipe_of: RecipeOf,
    weights: tuple[float, ...],
    densities: tuple[float, ...],
    normalize: bool,
    scale: float,
) -> None:
    recipe = recipe_of(Ties(weights=weights, densities=densities, normalize=normalize, scale=scale))
    for name in engine.order[::7]:
        base, deltas = sources(checkpoints, name)
        kept = [trim(delta, density) for delta, density in zip(deltas, densities, strict=True)]
        close(engine.merge_tensor(recipe, name), elect(base, kept, list(weights), normalize=normalize, scale=scale))


@given(density=st.floats(0.05, 0.95), rescale=st.booleans())
@LIGHT
def test_dare_keeps_the_l1_norm(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, density: float, rescale: bool
) -> None:
    recipe = recipe_of(DareLinear(weights=(1, 0, 0), densities=(density, 1, 1), rescale=rescale))
    for name in engine.order[::7]:
        base, (delta, *_) = sources(checkpoints, name)
        merged = engine.merge_tensor(recipe, name).double() - base
        kept = merged.abs() > delta.abs().double() / 2
        expected = delta.double() * kept
        if rescale and kept.any():
            expected *= delta.abs().double().sum() / expected.abs().sum()
        torch.testing.assert_close(merged, expected, rtol=2e-3, atol=2e-8)


def test_dare_is_right_on_average(engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    base, (delta, *_) = sources(checkpoints, name)
    operator = DareLinear(weights=(1, 0, 0), densities=(0.4, 1, 1))
    runs = [engine.merge_tensor(recipe_of(operator, seed=seed), name).double() - base for seed in range(400)]
    error = (torch.stack(runs).mean(0) - delta.double()).abs()
    spread = delta.abs().double() * math.sqrt(0.6 / 0.4 / 400)
    assert (error < 6 * spread + 1e-6).all()


def test_masks_of_dare_ties_and_dare_linear_agree(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf
) -> None:
    shape = {"weights": (1.0, 0.0, 0.0), "densities": (0.3, 1, 1), "normalize": False}
    one, two = recipe_of(DareLinear(**shape)), recipe_of(DareTies(**shape))
    assert all(torch.equal(engine.merge_tensor(one, n), engine.merge_tensor(two, n)) for n in engine.order)


def test_threshold_of_large_tensors_breaks_ties_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SMALL", 0)
    monkeypatch.setattr(selection, "_CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(1000)
    expert = torch.randint(-4, 5, (1000,), generator=generator) / 8
    selector = selection.Selector([lambda _: base, lambda _: expert], 0)
    for density in (0.001, 0.1, 0.25, 0.5, 0.7, 0.95, 0.999):
        keep = selector.largest(1, "w", density)
        assert keep is not None
        kept = torch.cat(
            [
                keep.mask(i, min(i + 77, 1000), part, torch.empty_like(part))
                for i, part in ((i, expert[i : i + 77]) for i in range(0, 1000, 77))
            ]
        )
        assert torch.equal(expert * kept, trim(expert, density))
