"""What rounding does to a merge: said in numbers, and never a change of what is written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.export import merge_file
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import mergeable_names
from evomerge.merging.engine import MergeEngine
from evomerge.merging.export import write_checkpoint
from evomerge.merging.rounding import Rounding
from search_spaces.operators import DareTies, Linear, Passthrough, Sce, TaskArithmetic, Ties
from search_spaces.recipe import Block, Blocks, Recipe, Source

OPERATORS = [
    TaskArithmetic(weights=(0.4, 0.3)),
    Linear(weights=(0.2, 0.5, 0.3)),
    Passthrough(source=1),
    Ties(weights=(0.4, 0.3), densities=(0.5, 0.7)),
    DareTies(weights=(0.4, 0.3), densities=(0.5, 0.7)),
    Sce(select_topk=0.5),
]


def recipe_of(folders: list[Path], operator: object, dtype: str) -> Recipe:
    sources = tuple(Source(path=str(folder)) for folder in folders)
    return Recipe(sources=sources, dtype=dtype, body=Blocks(blocks=(Block(layers=(0, 4), operator=operator),)))


@pytest.fixture(scope="module")
def near(make_family: Callable[..., list[Path]]) -> list[Path]:
    """Float32 experts that are as near to their base as reinforcement learning leaves them."""
    return make_family(experts=2, noise=3e-4)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.kind)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_bytes_are_those_of_a_merge_that_nobody_watches(near: list[Path], operator: object, dtype: str) -> None:
    checkpoints = [Checkpoint.open(folder) for folder in near]
    names = mergeable_names(checkpoints[0])
    engine, recipe = MergeEngine(checkpoints, names=names), recipe_of(near, operator, dtype)
    for name in names:
        merge = engine.tensor_merge(recipe, name)
        Rounding(checkpoints[0], getattr(torch, dtype)).look(name, merge.fill)
        watched = torch.empty(checkpoints[0].info(name).shape, dtype=getattr(torch, dtype))
        merge.fill(watched.view(-1))
        assert torch.equal(watched, engine.merge_tensor(recipe, name))


def test_the_cosine_is_that_of_all_elements(near: list[Path], tmp_path: Path) -> None:
    recipe = recipe_of(near, TaskArithmetic(weights=(0.4, 0.3)), "bfloat16")
    warnings: list[str] = []
    coarse = Checkpoint.open(write_checkpoint(recipe, tmp_path / "coarse", card="# Card", warn=warnings.append))
    exact = recipe.model_copy(update={"dtype": "float32"})
    fine = Checkpoint.open(write_checkpoint(exact, tmp_path / "fine", card="# Card", warn=warnings.append))
    base = Checkpoint.open(near[0])
    steps = [
        torch.cat([(model.tensor(name).double() - base.tensor(name).double()).view(-1) for name in fine.names])
        for model in (coarse, fine)
    ]
    cosine = float(torch.cosine_similarity(*steps, dim=0))
    assert cosine < 0.95
    (warning,) = warnings
    assert f"rounding to bfloat16 changes the merge: cosine {cosine:.3f}" in warning
    assert f"keeps a cosine of {cosine:.4f}" in (tmp_path / "coarse" / "README.md").read_text()
    assert (tmp_path / "fine" / "README.md").read_text() == "# Card"


def test_float16_is_the_remedy(near: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(recipe_of(near, TaskArithmetic(weights=(0.4, 0.3)), "bfloat16").to_json())
    (warning,) = merge_file(file, tmp_path / "coarse")
    assert warning.endswith("--dtype float16 or float32 keeps it")
    assert merge_file(file, tmp_path / "half", dtype="float16") == []
    assert Checkpoint.open(tmp_path / "half").info("lm_head.weight").dtype is torch.float16


def test_without_a_step_there_is_no_cosine(near: list[Path]) -> None:
    base = Checkpoint.open(near[0])
    rounding = Rounding(base, torch.float16)
    weights = base.tensor("lm_head.weight").flatten()
    rounding.look("lm_head.weight", lambda out, first: out.copy_(weights[first : first + len(out)]))
    assert (rounding.cosine, rounding.sentence, rounding.warning) == (None, None, None)


class Large:
    """Stands for a checkpoint with one tensor that is looked at in runs."""

    def __init__(self, size: int) -> None:
        self.weights = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 0.02

    def tensor(self, _name: str) -> torch.Tensor:
        return self.weights


@given(step=st.sampled_from([3e-6, 3e-5, 1e-4, 1e-3]), size=st.integers(300_000, 400_000))
@settings(max_examples=8, deadline=None)
def test_runs_of_a_large_tensor_stand_for_all_of_it(step: float, size: int) -> None:
    base = Large(size)
    asked = torch.randn(size, generator=torch.Generator().manual_seed(2)) * step
    rounding = Rounding(base, torch.bfloat16)  # type: ignore[arg-type]
    rounding.look("all", lambda out, first: out.copy_((base.weights + asked)[first : first + len(out)]))
    exact = (base.weights + asked).bfloat16().double() - base.weights.double()
    asked = (base.weights + asked).double() - base.weights.double()
    assert rounding.cosine == pytest.approx(float(torch.cosine_similarity(exact, asked, dim=0)), abs=0.03)
