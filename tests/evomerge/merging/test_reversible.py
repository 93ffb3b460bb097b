"""Experts in one basis: what is restored, what is lost, and what is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.errors import BadRecipe, BadSearch, BadSource
from evomerge.export import merge_file
from evomerge.merging.adapter import Adapter, is_adapter
from evomerge.merging.adapter_export import write_adapter
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.growing import growing
from evomerge.merging.reversible import write_reversible
from search_spaces.operators import Fisher, TaskArithmetic
from search_spaces.recipe import Block, Blocks, Recipe, Source
from search_spaces.vocabulary import Vocabulary

MATRIX, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def experts(family: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The base, and two whole models that differ from it by rank 3 in one matrix and by a norm."""
    import shutil

    random, found = torch.Generator().manual_seed(3), [family[0]]
    for number in range(2):
        folder = tmp_path_factory.mktemp("reversible") / f"expert{number}"
        shutil.copytree(family[0], folder)
        tensors = load_file(folder / "model.safetensors")
        rows, columns = tensors[MATRIX].shape
        up, down = torch.randn(rows, 3, generator=random), torch.randn(3, columns, generator=random)
        tensors[MATRIX] = tensors[MATRIX] + 0.01 * up @ down
        tensors[NORM] = tensors[NORM] + 0.1 * number
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        found.append(folder)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_grows_by_the_tensors_that_come(tmp_path: Path, dtype: torch.dtype) -> None:
    come = {'a "quoted" name': torch.randn(3, 5), "long" * 40: torch.randn(7), "b": torch.randn(2, 2, 2)}
    with growing(tmp_path / "file", [*come, *map(str, range(50))], base="0" * 64) as file:
        assert file.empty
        for name, tensor in come.items():
            file.add(name, tensor.to(dtype))
    found = load_file(tmp_path / "file")
    assert found.keys() == come.keys()
    assert all(torch.equal(found[name], tensor.to(dtype)) for name, tensor in come.items())
    with safe_open(tmp_path / "file", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "base": "0" * 64}
    with growing(tmp_path / "empty", ["a"]):
        pass
    assert load_file(tmp_path / "empty") == {}


def recipe_of(folders: list[Path], dtype: str = "float32") -> Recipe:
    body = Blocks(blocks=(Block(layers=(0, 4), operator=TaskArithmetic(weights=(0.5,) * (len(folders) - 1))),))
    return Recipe(sources=tuple(Source(path=str(folder)) for folder in folders), dtype=dtype, body=body)


def delta(folder: Path, base: Path, name: str) -> Tensor:
    return (Checkpoint.open(folder).tensor(name) - Checkpoint.open(base).tensor(name)).double()


def test_experts_are_restored_by_their_recipes(experts: list[Path], tmp_path: Path) -> None:
    errors = write_reversible(recipe_of(experts), tmp_path / "shared", rank=99)
    assert max(errors) < 1e-5
    bases = load_file(tmp_path / "shared" / "basis.safetensors")
    assert {name: tuple(basis.shape) for name, basis in bases.items()} == {MATRIX: (6, 32)}
    for number, folder in enumerate(experts[1:], start=1):
        merge_file(tmp_path / "shared" / f"expert-{number}.json", tmp_path / f"restored-{number}")
        for name in Checkpoint.open(folder).names:
            restored = Checkpoint.open(tmp_path / f"restored-{number}").tensor(name)
            torch.testing.assert_close(restored, Checkpoint.open(folder).tensor(name), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_error_is_that_of_the_best_basis(experts: list[Path], tmp_path: Path, dtype: str) -> None:
    """Of the rank: what the singular values beyond it leave out, over all experts together; and of the rounding."""
    errors = write_reversible(recipe_of(experts, dtype), tmp_path / "shared", rank=2)
    parts = [delta(folder, experts[0], MATRIX) for folder in experts[1:]]
    norms = [delta(folder, experts[0], NORM).square().sum() for folder in experts[1:]]
    whole = [float(part.square().sum() + norm) for part, norm in zip(parts, norms, strict=True)]
    least = float(torch.linalg.svdvals(torch.cat(parts))[2:].square().sum())
    lost = sum(error**2 * size for error, size in zip(errors, whole, strict=True))
    assert lost == pytest.approx(least, rel=1e-4 if dtype == "float32" else 0.05)
    text = (tmp_path / "shared" / "README.md").read_text()
    assert all(f"| {error:.3g} |" in text for error in errors)


def test_a_folder_of_coefficients_is_an_adapter(experts: list[Path], tmp_path: Path) -> None:
    write_reversible(recipe_of(experts), tmp_path / "shared", rank=6)
    folder = tmp_path / "shared" / "expert-1"
    assert is_adapter(folder)
    found = Adapter.on(Checkpoint.open(experts[0]), folder)
    torch.testing.assert_close(found.tensor(MATRIX), Checkpoint.open(experts[1]).tensor(MATRIX), rtol=0, atol=1e-7)
    again = write_reversible(recipe_of([experts[0], folder]), tmp_path / "again", rank=None)
    assert max(again) < 1e-6


def test_what_is_refused(experts: list[Path], family: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="give --rank"):
        write_reversible(recipe_of(experts), tmp_path / "shared", rank=None)
    with pytest.raises(BadRecipe, match="the base itself"):
        write_reversible(recipe_of([experts[0], experts[0]]), tmp_path / "shared", rank=2)
    write_reversible(recipe_of(experts), tmp_path / "shared", rank=2)
    folder = tmp_path / "shared" / "expert-1"
    with pytest.raises(BadSource, match="another base"):
        Adapter.on(Checkpoint.open(family[1]), folder)
    basis = tmp_path / "shared" / "basis.safetensors"
    basis.rename(tmp_path / "elsewhere")
    with pytest.raises(BadSource, match="without their basis"):
        Adapter.on(Checkpoint.open(experts[0]), folder)


def test_a_limit_of_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSearch, match="--memory-limit is of checkpoints"):
        merge_file(tmp_path / "recipe.json", tmp_path / "shared", kind="reversible", memory_limit="2GiB")


def test_the_body_of_the_recipe_costs_nothing(experts: list[Path], tmp_path: Path) -> None:
    """Statistics of an operator that is not run are not asked for."""
    recipe = recipe_of(experts)
    fisher = Block(layers=(0, 4), operator=Fisher(weights=(0.5, 0.5), prompts="0" * 64))
    write_reversible(recipe.model_copy(update={"body": Blocks(blocks=(fisher,))}), tmp_path / "shared", rank=2)


@pytest.mark.parametrize("write", [write_adapter, partial(write_reversible, rank=2)])
def test_another_vocabulary_is_refused(experts: list[Path], tmp_path: Path, write: Callable[..., object]) -> None:
    """What is restored stands on the base as it is."""
    recipe = recipe_of(experts).model_copy(update={"vocabulary": Vocabulary(source="union", pad_to_multiple_of=64)})
    with pytest.raises(BadRecipe, match="another vocabulary .* export a checkpoint"):
        write(recipe, tmp_path / "shared")


def test_another_basis_is_noticed(experts: list[Path], tmp_path: Path, change: Callable[[Path], None]) -> None:
    write_reversible(recipe_of(experts), tmp_path / "shared", rank=2)
    change(tmp_path / "shared" / "basis.safetensors")
    with pytest.raises(BadSource, match="have changed"):
        merge_file(tmp_path / "shared" / "expert-1.json", tmp_path / "restored")


@pytest.fixture
def change() -> Callable[[Path], None]:
    def moved(file: Path) -> None:
        tensors = load_file(file)
        save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, file)

    return moved
