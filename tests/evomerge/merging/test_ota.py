"""OTA merging against its formula, and second moments that do not fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge.errors import BadSource
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.ota import LEVELS, MOMENTS, levels_of, weighed
from search_spaces.operators import Ota, TaskArithmetic
from search_spaces.recipe import Block, Blocks, Recipe, Source

NAMES = ("model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight")


@pytest.fixture
def trained(make_family: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    folders = make_family(experts=2)
    for number, folder in enumerate(folders[1:]):
        random = torch.Generator().manual_seed(number)
        names = Checkpoint.open(folder)
        save_file({n: torch.rand(names.info(n).shape, generator=random) ** 4 for n in names.names}, folder / MOMENTS)
    return folders


def merged(folders: list[Path], operator: Ota | TaskArithmetic, name: str) -> torch.Tensor:
    checkpoints = [Checkpoint.open(folder) for folder in folders]
    sources = tuple(Source(path=str(folder)) for folder in folders)
    recipe = Recipe(sources=sources, dtype="float32", body=Blocks(blocks=(Block(layers=(0, 9), operator=operator),)))
    return MergeEngine(checkpoints, names=checkpoints[0].names).merge_tensor(recipe, name)


def test_recipes_follow_the_formula(trained: list[Path]) -> None:
    operator = Ota(weights=(0.7, -0.4), densities=(0.25, 0.6), exponent=0.5, scale=1.3)
    for name in NAMES:
        base, *experts = (Checkpoint.open(folder).tensor(name).double() for folder in trained)
        moments = [load_file(folder / MOMENTS)[name].double() for folder in trained[1:]]
        expected = base.clone()
        for expert, v, weight, density in zip(experts, moments, (0.7, -0.4), (0.25, 0.6), strict=True):
            score = (v * (expert - base) ** 2).flatten()
            kept = torch.zeros_like(score)
            kept[torch.argsort(score, descending=True)[: round(density * len(score))]] = 1.0
            floored = [each.clamp(min=1e-6 * float(sum(m.mean() for m in moments)) / 2).sqrt() for each in moments]
            share = 2 * v.clamp(min=1e-6 * float(sum(m.mean() for m in moments)) / 2).sqrt() / sum(floored)
            expected += 1.3 * weight * share * kept.view_as(base) * (expert - base)
        found = merged(trained, operator, name).double()
        different = (found - expected).abs() > 1e-6  # the element at the edge of a share may fall on either side
        assert int(different.sum()) <= 2


def test_equal_moments_and_full_densities_are_task_arithmetic(trained: list[Path]) -> None:
    for folder in trained[1:]:
        save_file({n: torch.ones_like(v) for n, v in load_file(folder / MOMENTS).items()}, folder / MOMENTS)
    for name in NAMES:
        one = merged(trained, Ota(weights=(0.7, 0.2), densities=(1.0, 1.0)), name)
        torch.testing.assert_close(one, merged(trained, TaskArithmetic(weights=(0.7, 0.2)), name), rtol=0, atol=1e-7)


@given(size=st.integers(1, 300), seed=st.integers(0, 99), density=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_levels_keep_the_largest_and_nest(size: int, seed: int, density: float) -> None:
    scores = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    levels = levels_of(scores)
    kept = levels < round(density * LEVELS)
    assert abs(int(kept.sum()) - density * size) <= 1
    assert not kept.any() or kept.all() or scores[kept].min() >= scores[~kept].max()


def test_moments_of_zero_share_alike() -> None:
    taus = [torch.ones(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)]
    for found, tau in zip(weighed(taus, [torch.zeros(3).double()] * 2, 0.5), taus, strict=True):
        torch.testing.assert_close(found, tau)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda file: file.unlink(), "needs the second moments of Adam"),
        (lambda file: file.write_bytes(b"no"), "has no readable tensor"),
        (lambda file: save_file({NAMES[0]: torch.ones(2, 2)}, file), "has shape .2, 2., the weights have"),
        (lambda file: save_file({n: -v for n, v in load_file(file).items()}, file), "no second moments"),
    ],
)
def test_moments_that_do_not_fit_are_refused(
    trained: list[Path], change: Callable[[Path], object], expected: str
) -> None:
    change(trained[2] / MOMENTS)
    with pytest.raises(BadSource, match=expected):
        merged(trained, Ota(weights=(1.0, 1.0), densities=(0.5, 0.5)), NAMES[0])
