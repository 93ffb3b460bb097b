"""Spectral operators against their definitions, and the virtual task vectors on disk."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.errors import NotEnoughRoom
from evomerge.merging import knots, spectral
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.selection import Selector
from search_spaces.operators import (
    Doge,
    IsoC,
    IsoCts,
    Knots,
    Opcm,
    Operator,
    SubspaceBoosting,
    Swudi,
    TaskArithmetic,
    TsvM,
)
from search_spaces.recipe import Recipe

RecipeOf = Callable[..., Recipe]
MATRIX = "model.layers.1.mlp.up_proj.weight"
SEEDS = st.integers(0, 1000)
SHAPES = st.sampled_from([(12, 12), (9, 14), (14, 9)])
LIGHT = settings(max_examples=15, deadline=None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    return tmp_path


def matrices(seed: int, shape: tuple[int, int], count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) * 1e-3 for _ in range(count)]


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows), by (M M^T)^(-1/2) M, of full rank."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors @ torch.diag(values**-0.5) @ vectors.T @ matrix


@given(seed=SEEDS, shape=SHAPES, rank=st.floats(0.2, 1))
@LIGHT
def test_tsv_m(seed: int, shape: tuple[int, int], rank: float) -> None:
    taus = matrices(seed, shape)
    most = max(1, int(rank * min(shape) / 3))
    parts = [torch.linalg.svd(tau, full_matrices=False) for tau in taus]
    left = orthogonal(torch.cat([part[0][:, :most] for part in parts], 1))
    right = orthogonal(torch.cat([part[2][:most].T for part in parts], 1))
    expected = left @ torch.diag(torch.cat([part[1][:most] for part in parts])) @ right.T
    torch.testing.assert_close(sum(spectral.tsv_m(taus, rank)), expected, rtol=1e-9, atol=1e-12)


@given(seed=SEEDS, shape=SHAPES)
@LIGHT
def test_iso_c_has_equal_singular_values(seed: int, shape: tuple[int, int]) -> None:
    taus = matrices(seed, shape)
    left, values, right = torch.linalg.svd(sum(taus), full_matrices=False)
    (found,) = spectral.iso_c(taus)
    torch.testing.assert_close(found, values.mean() * left @ right, rtol=1e-5, atol=1e-9)


@given(seed=SEEDS, rank=st.integers(1, 3))
@LIGHT
def test_iso_c_leaves_unused_directions_alone(seed: int, rank: int) -> None:
    left, right = matrices(seed, (14, rank), 1)[0], matrices(seed + 1, (9, rank), 1)[0]
    (found,) = spectral.iso_c([left @ right.T])
    values = torch.linalg.svdvals(found)
    assert float(values[rank:].max()) < 1e-6 * float(values[0])
    torch.testing.assert_close(values[:rank], values[:1].expand(rank), rtol=1e-3, atol=0)


@given(seed=SEEDS, shape=SHAPES, common=st.floats(0, 1))
@LIGHT
def test_iso_cts(seed: int, shape: tuple[int, int], common: float) -> None:
    taus = matrices(seed, shape)
    total, size = sum(taus, torch.zeros(shape, dtype=torch.float64)), min(shape)
    own = (size - int(common * size)) // 3
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    kept = size - 3 * own
    parts = [(u[:, :kept], s[:kept], v[:kept])]
    outside = torch.eye(shape[0], dtype=torch.float64) - u[:, :kept] @ u[:, :kept].T
    for tau in taus:
        a, b, c = torch.linalg.svd(outside @ tau, full_matrices=False)
        parts.append((a[:, :own], b[:own], c[:own]))
    left = orthogonal(torch.cat([part[0] for part in parts], 1))
    right = orthogonal(torch.cat([part[2].T for part in parts], 1))
    mean = torch.cat([part[1] for part in parts]).mean()
    (found,) = spectral.iso_cts(taus, common)
    torch.testing.assert_close(found, left @ right.T * mean, rtol=1e-6, atol=1e-10)


def test_iso_cts_of_all_directions_is_iso_c() -> None:
    taus = matrices(3, (9, 14))
    torch.testing.assert_close(spectral.iso_cts(taus, 1.0), spectral.iso_c(taus), rtol=1e-6, atol=1e-12)


@given(seed=SEEDS, shape=SHAPES, energy=st.floats(0.01, 1))
@LIGHT
def test_subspace_boosting_lifts_the_small_singular_values(seed: int, shape: tuple[int, int], energy: float) -> None:
    taus = matrices(seed, shape)
    total = sum(taus, torch.zeros(shape, dtype=torch.float64))
    (found,) = spectral.subspace_boosting(taus, energy)
    before, after = torch.linalg.svdvals(total), torch.linalg.svdvals(found)
    place = next(i for i in range(len(before)) if before[: i + 1].sum() >= energy * before.sum() * (1 - 1e-12))
    torch.testing.assert_close(after[: place + 1], before[: place + 1], rtol=1e-9, atol=0)
    torch.testing.assert_close(after[place:], before[place].expand(len(before) - place), rtol=1e-9, atol=0)
    if place == len(before) - 1:
        torch.testing.assert_close(found, total, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(found.T @ total, total.T @ found, rtol=0, atol=1e-12)  # the same singular vectors


@given(seed=SEEDS, shape=SHAPES, time=st.floats(0.05, 30))
@settings(max_examples=5, deadline=None)
def test_swudi_is_the_gradient_flow_of_wudi(seed: int, shape: tuple[int, int], time: float) -> None:
    """Gradient descent with ever smaller steps on sum_i |(tau - tau_i) tau_i^T|^2 / |tau_i|^2 (half of it)."""
    taus = matrices(seed, shape)
    tau, steps = sum(taus, torch.zeros(shape, dtype=torch.float64)), 4000
    for _ in range(steps):
        pull = sum((tau - each) @ each.T @ each / each.square().sum() for each in taus)
        tau = tau - time / steps * pull
    found = sum(spectral.swudi(taus, 1.0, time))
    assert float((found - tau).norm() / tau.norm()) < 2e-3


def test_swudi_of_a_long_time_is_the_optimum() -> None:
    taus = matrices(0, (9, 14))
    optimum = sum(spectral.swudi(taus, 1.0, 1e6))
    slope = sum((optimum - tau) @ tau.T @ tau / tau.square().sum() for tau in taus)
    assert float(slope.norm()) < 1e-6 * float(optimum.norm())


@given(seed=SEEDS)
@LIGHT
def test_equal_experts_share_and_unmoved_ones_add_nothing(seed: int) -> None:
    (tau,) = matrices(seed, (12, 9), 1)
    for make in (lambda taus: spectral.tsv_m(taus, 1.0), lambda taus: spectral.swudi(taus, 1.0, 300.0)):
        one, two, none = make([tau, tau, torch.zeros_like(tau)])
        assert torch.isfinite(torch.stack([one, two, none])).all()
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
        assert not none.any()
    zeros = [torch.zeros(4, 5, dtype=torch.float64)] * 2
    for found in (
        *spectral.tsv_m(zeros, 1.0),
        *spectral.iso_c(zeros),
        *spectral.iso_cts(zeros, 0.8),
        *spectral.subspace_boosting(zeros, 0.2),
        *spectral.swudi(zeros, 1.0, 1.0),
        *spectral.opcm(zeros, 0.5),
        *spectral.doge(zeros, zeros, spectral.Descent(0.07, 6, 3, 1e-4)),
        spectral.shared_basis(zeros),
    ):
        assert not found.any()


@given(seed=SEEDS, shape=SHAPES, energy=st.floats(0.05, 1))
@LIGHT
def test_opcm(seed: int, shape: tuple[int, int], energy: float) -> None:
    """As published: full singular vectors, and a scale between any two steps, which here is arbitrary."""
    taus = matrices(seed, shape)
    merged, before = taus[0], 1.0
    for tau, scale in zip(taus[1:], (1.7, 0.4), strict=True):
        left, values, right = torch.linalg.svd(merged, full_matrices=True)
        held = int((values.cumsum(0) / values.sum() <= energy + 1e-12).sum())
        inside = left.T @ tau @ right.T
        inside.diagonal().zero_()
        inside[:held, :held] = 0.0
        merged, before = (before * merged + left @ inside @ right) / scale, scale
    (found,) = spectral.opcm(taus, energy)
    torch.testing.assert_close(found, merged * before, rtol=1e-9, atol=1e-15)


def test_opcm_steps_as_far_as_the_mean_expert(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf
) -> None:
    recipe = recipe_of(Opcm(scale=0.5))
    base, *experts = checkpoints
    lengths = [
        math.sqrt(sum(float((e.tensor(n) - base.tensor(n)).square().sum()) for n in base.names)) for e in experts
    ]
    moved = {name: engine.merge_tensor(recipe, name) - base.tensor(name) for name in engine.order}
    assert math.sqrt(sum(float(m.square().sum()) for m in moved.values())) == pytest.approx(sum(lengths) / 6, rel=1e-4)
    total = sum(expert.tensor("model.norm.weight") - base.tensor("model.norm.weight") for expert in experts)
    assert float(torch.cosine_similarity(moved["model.norm.weight"], total, dim=0)) > 1 - 1e-5


@given(seed=SEEDS, shape=SHAPES, subspace=st.integers(1, 6), keep=st.floats(0, 1))
@settings(max_examples=8, deadline=None)
def test_doge(seed: int, shape: tuple[int, int], subspace: int, keep: float) -> None:
    """The published loss, differentiated by autograd; the projection by its whole matrix."""
    taus = matrices(seed, shape)
    masks = [(tau.abs() > keep * tau.abs().max()).double() for tau in taus]
    shares = [0.07 / tau.norm() for tau in taus]
    most = min(shape)
    own = torch.cat([torch.linalg.svd(tau, full_matrices=False)[0][:, : most // 3] for tau in taus], 1)
    basis = torch.linalg.svd(own, full_matrices=False)[0][:, : most // subspace]
    added = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([added], lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        total = sum(share * (tau + added) for share, tau in zip(shares, taus, strict=True))
        sum((tau * (tau - total)).sum(1).square().sum() for tau in taus).backward()
        added.grad -= basis @ basis.T @ added.grad
        optimizer.step()
    found = spectral.doge(taus, masks, spectral.Descent(eta=0.07, subspace=subspace, iterations=20, rate=1e-3))
    for one, share, mask, tau in zip(found, shares, masks, taus, strict=True):
        torch.testing.assert_close(one, share * mask * (tau + added.detach()), rtol=1e-6, atol=1e-9)


def test_doge_lowers_its_loss() -> None:
    taus = [100 * tau for tau in matrices(3, (12, 12))]  # elements of 0.1: 400 steps of 1e-3 can move them

    def loss(added: Tensor) -> float:
        total = sum(0.07 / tau.norm() * (tau + added) for tau in taus)
        return float(sum((tau * (tau - total)).sum(1).square().sum() for tau in taus))

    ones = [torch.ones_like(tau) for tau in taus]
    found = spectral.doge(taus, ones, spectral.Descent(eta=0.07, subspace=6, iterations=400, rate=1e-3))
    assert loss(found[0] * taus[0].norm() / 0.07 - taus[0]) < 0.9 * loss(torch.zeros_like(taus[0]))


@given(seed=SEEDS, shape=SHAPES, rank=st.integers(1, 3))
@LIGHT
def test_the_shared_basis_holds_every_task_vector(seed: int, shape: tuple[int, int], rank: int) -> None:
    factors = zip(matrices(seed, (shape[0], rank)), matrices(seed + 1, (shape[1], rank)), strict=True)
    taus = [left @ right.T for left, right in factors]
    basis = spectral.shared_basis(taus)
    left, values, _ = torch.linalg.svd(torch.cat(taus, 1), full_matrices=False)
    used = int((values > 1e-6 * values[0]).sum())
    assert basis.shape == (shape[0], used)
    torch.testing.assert_close(
        (basis.T @ left[:, :used]).abs(), torch.eye(used, dtype=torch.float64), rtol=0, atol=1e-4
    )
    for tau in taus:
        torch.testing.assert_close(basis @ (basis.T @ tau), tau, rtol=0, atol=1e-9)


@given(weights=st.tuples(*[st.floats(-1, 1.5)] * 3), densities=st.tuples(*[st.floats(0.05, 1)] * 3))
@settings(max_examples=5, deadline=None)
def test_knots_is_ties_in_the_shared_basis(
    engine: MergeEngine,
    checkpoints: list[Checkpoint],
    recipe_of: RecipeOf,
    weights: tuple[float, ...],
    densities: tuple[float, ...],
) -> None:
    base, *experts = (checkpoint.tensor(MATRIX).double() for checkpoint in checkpoints)
    left, values, right = torch.linalg.svd(torch.cat([expert - base for expert in experts], 1), full_matrices=False)
    kept = []
    for part, weight, density in zip(
        (values[:, None] * right).split(base.shape[1], 1), weights, densities, strict=True
    ):
        order = part.flatten().abs().argsort(descending=True)[: max(1, int(density * part.numel()))]
        mask = torch.zeros(part.numel(), dtype=torch.float64)
        mask[order] = 1.0
        kept.append(weight * mask.view_as(part) * part)
    stack = torch.stack(kept)
    agree = stack.sign() == torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    operator = Knots(weights=weights, densities=densities, normalize=False, scale=1.3)
    found = engine.merge_tensor(recipe_of(operator), MATRIX).double()
    error = (found - base - 1.3 * left @ (stack * agree).sum(0)).norm()
    assert float(error) <= 0.02 * float(stack.norm()) + 1e-6  # elements next to a threshold or at a sum of 0


def test_knots_of_everything_is_task_arithmetic(engine: MergeEngine, recipe_of: RecipeOf) -> None:
    weights = (0.5, -0.2, 0.9)
    knots = Knots(weights=weights, densities=(1, 1, 1), method="dare_linear", normalize=False, scale=0.8)
    plain = TaskArithmetic(weights=weights, scale=0.8)
    for name in (MATRIX, "model.norm.weight", "lm_head.weight"):
        expected = engine.merge_tensor(recipe_of(plain), name)
        torch.testing.assert_close(engine.merge_tensor(recipe_of(knots), name), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("limit", "method"), [(None, "ties"), (1 << 20, "ties"), (1 << 20, "dare_ties")])
def test_knots_remembers_little_of_each_matrix(
    checkpoints: list[Checkpoint], engine: MergeEngine, recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch,
    limit: int | None, method: str,
) -> None:  # fmt: skip
    """A selector of its own for every matrix must not have room for everything each."""
    monkeypatch.setattr(knots, "_OF_SMALL", 1500)
    made: list[Selector] = []

    def noted(*arguments: Any) -> Selector:
        made.append(Selector(*arguments))
        return made[-1]

    monkeypatch.setattr(knots, "Selector", noted)
    limited = MergeEngine(checkpoints, names=checkpoints[0].names, cache_bytes=limit)
    for density in (0.2, 0.4, 0.6, 0.8):
        recipe = recipe_of(Knots(weights=(0.5, 0.2, 0.9), densities=(density,) * 3, method=method))
        assert torch.equal(limited.merge_tensor(recipe, MATRIX), engine.merge_tensor(recipe, MATRIX))
    own = made[0]
    assert own._cached_bytes <= (0 if limit else 1500)


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_knots_draws_in_the_basis(engine: MergeEngine, recipe_of: RecipeOf, method: str) -> None:
    """The same masks each time, and others with another seed."""
    knots = Knots(weights=(0.5, 0.2, 0.9), densities=(0.5, 0.5, 0.5), method=method)
    one, other = (engine.merge_tensor(recipe_of(knots, seed=seed), MATRIX) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(one, engine.merge_tensor(recipe_of(knots), MATRIX))


@pytest.mark.parametrize(
    ("operator", "virtual"),
    [
        (TsvM(weights=(0.5, -0.2, 0.9), rank=0.7, scale=1.2), lambda taus: spectral.tsv_m(taus, 0.7)),
        (Swudi(weights=(0.5, -0.2, 0.9), scale=1.2), lambda taus: spectral.swudi(taus, 0.85, 300.0)),
        (IsoC(scale=1.2), spectral.iso_c),
        (IsoCts(common=0.5, scale=1.2), lambda taus: spectral.iso_cts(taus, 0.5)),
        (SubspaceBoosting(energy=0.3, scale=1.2), lambda taus: spectral.subspace_boosting(taus, 0.3)),
        (
            Doge(weights=(0.5, -0.2, 0.9), keep=1.0, iterations=5, scale=1.2),
            lambda taus: spectral.doge(
                taus, [torch.ones_like(tau) for tau in taus], spectral.Descent(0.07, 6, 5, 1e-4)
            ),
        ),
    ],
)
def test_recipes_add_virtual_task_vectors(
    engine: MergeEngine,
    checkpoints: list[Checkpoint],
    recipe_of: RecipeOf,
    cache: Path,
    operator: Operator,
    virtual: Callable[[list[Tensor]], list[Tensor]],
) -> None:
    base, *experts = (checkpoint.tensor(MATRIX).double() for checkpoint in checkpoints)
    vectors = virtual([expert - base for expert in experts])
    weights = getattr(operator, "weights", (1.0, 1.0, 1.0))
    expected = base + 1.2 * sum(weight * vector for weight, vector in zip(weights, vectors, strict=False))
    torch.testing.assert_close(engine.merge_tensor(recipe_of(operator), MATRIX).double(), expected, rtol=0, atol=1e-7)
    mean = recipe_of(TaskArithmetic(weights=tuple(0.4 * weight for weight in weights)))
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"):
        torch.testing.assert_close(engine.merge_tensor(recipe_of(operator), name), engine.merge_tensor(mean, name))
    (file,) = (cache / "virtual").rglob("*.safetensors")
    assert file.name == f"{MATRIX}.safetensors"


def test_prepared_once_for_all_weights_and_per_parameter(
    engine: MergeEngine, recipe_of: RecipeOf, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    make = spectral.tsv_m
    monkeypatch.setattr(spectral, "tsv_m", lambda taus, rank: calls.append(rank) or make(taus, rank))
    for weights, rank in [((1, 1, 1), 1.0), ((0.2, 0, 3), 1.0), ((1, 1, 1), 0.5), ((0, 0, 0), 0.5)]:
        engine.merge_tensor(recipe_of(TsvM(weights=weights, rank=rank)), MATRIX)
    assert calls == [1.0, 0.5]


def test_a_cache_that_cannot_be_written_is_named(
    engine: MergeEngine, recipe_of: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("EVOMERGE_CACHE", str(blocked))
    with pytest.raises(NotEnoughRoom, match="let EVOMERGE_CACHE name a folder"):
        engine.merge_tensor(recipe_of(IsoC()), MATRIX)
