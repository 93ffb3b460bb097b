"""Merges under a limit of memory."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evomerge.errors import BadSearch, NotEnoughRoom
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.export import write_checkpoint
from evomerge.merging.memory import _needed, parse_bytes
from search_spaces.operators import DareTies, Ota, TaskArithmetic, TsvM
from search_spaces.recipe import Recipe

RecipeOf = Callable[..., Recipe]
DRIVER = Path(__file__).parent / "limited_driver.py"


@pytest.mark.parametrize(
    ("text", "value"), [("2GiB", 2 << 30), ("500MB", 500_000_000), ("1.5 GiB", 3 << 29), ("4096", 4096)]
)
def test_sizes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "much", "0", "-1GiB", "2 bananas"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadSearch, match="expected a size as 2GiB"):
        parse_bytes(text)


@pytest.mark.parametrize("operator", [TaskArithmetic(weights=(1, 1, 1)), TsvM(weights=(1, 1, 1))])
def test_a_limit_that_is_too_small_says_what_is_needed(
    recipe_of: RecipeOf, tmp_path: Path, operator: TaskArithmetic | TsvM
) -> None:
    recipe = recipe_of(operator)
    with pytest.raises(NotEnoughRoom, match=r"needs \d+ MiB .* limit is 1 MiB") as caught:
        write_checkpoint(recipe, tmp_path / "out", memory_limit=1 << 20)
    assert list(tmp_path.iterdir()) == []
    enough = int(re.search(r"needs (\d+) MiB", str(caught.value))[1])  # type: ignore[index]
    write_checkpoint(recipe, tmp_path / "out", memory_limit=enough << 20)


def test_whole_tensors_count(recipe_of: RecipeOf, family: list[Path]) -> None:
    checkpoints = [Checkpoint.open(folder) for folder in family]
    streamed, whole = (
        _needed(recipe_of(operator), checkpoints, checkpoints[0].order)
        for operator in (TaskArithmetic(weights=(1, 1, 1)), Ota(weights=(1, 1, 1), densities=(1, 1, 1)))
    )
    largest = max(math.prod(checkpoints[0].info(name).shape) for name in checkpoints[0].order)
    assert whole >= streamed + 2 * 3 * 8 * largest  # task vectors and moments, in float64


def test_a_limit_changes_no_byte(recipe_of: RecipeOf, tmp_path: Path) -> None:
    recipe = recipe_of(DareTies(weights=(0.5, 0.3, 0.2), densities=(0.5, 0.6, 0.7)), dtype="bfloat16")
    free, tight = (
        Checkpoint.open(write_checkpoint(recipe, tmp_path / str(limit), memory_limit=limit))
        for limit in (None, 64 << 20)
    )
    assert all(torch.equal(free.tensor(name), tight.tensor(name)) for name in free.names)


@pytest.mark.slow
def test_models_larger_than_the_limit_stay_inside_it(tmp_path: Path) -> None:
    """What streams; a path is loaded to be verified, an adapted embedding made whole, within what is said."""
    limit = 60
    done = subprocess.run([sys.executable, DRIVER, tmp_path, str(limit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert (tmp_path / "large" / "0" / "model.safetensors").stat().st_size > 1.9 * limit * 2**20
    assert {name for name, (allowed, _) in found.items() if allowed > limit << 20} == {
        "path",
        "adapter-of-the-embedding",
    }
    assert {name: both for name, both in found.items() if both[1] > both[0]} == {}
