"""Operators on the factors of LoRA adapters against their definitions, and their merges as adapters."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from evomerge.errors import BadSearch
from evomerge.merging.adapter import Adapter, Factors
from evomerge.merging.adapter_export import write_adapter
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.lowrank import lego
from evomerge.merging.opening import open_sources
from evomerge.problem import check_adapters
from search_spaces.operators import EvoLora, LoraLego, Operator
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.recipe import Block, Blocks, Recipe, Source

MATRIX, OTHER = "model.layers.1.mlp.up_proj.weight", "model.layers.2.self_attn.q_proj.weight"
LIGHT = settings(max_examples=15, deadline=None)


def factors(seed: int, ranks: tuple[int, ...], *, scale: float = 0.5) -> list[Factors]:
    random = torch.Generator().manual_seed(seed)
    return [
        Factors(torch.randn(rank, 6, generator=random), torch.randn(9, rank, generator=random), scale, False)
        for rank in ranks
    ]


@pytest.fixture(scope="module")
def folders(family: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The base and three adapters, of ranks 2, 3 and 4; the second leaves one matrix alone."""
    base, root = Checkpoint.open(family[0]), tmp_path_factory.mktemp("adapters")
    random, found = torch.Generator().manual_seed(5), [family[0]]
    for number, rank in enumerate((2, 3, 4)):
        folder = root / f"adapter{number}"
        folder.mkdir()
        tensors = {}
        for name in (MATRIX, OTHER) if number != 1 else (MATRIX,):
            rows, columns = base.info(name).shape
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=random) * 0.1
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, rank, generator=random) * 0.1
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["up_proj", "q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        found.append(folder)
    return found


@pytest.fixture(scope="module")
def merge(folders: list[Path]) -> Callable[[Operator, str], Tensor]:
    """What an operator adds to the base, float64."""
    checkpoints = open_sources(folders, 0)
    engine = MergeEngine(checkpoints, names=checkpoints[0].names)

    def added(operator: Operator, name: str) -> Tensor:
        return engine.merge_tensor(recipe_of(folders, operator), name).double() - checkpoints[0].tensor(name).double()

    return added


def recipe_of(folders: list[Path], operator: Operator) -> Recipe:
    sources = tuple(Source(path=str(folder)) for folder in folders)
    body = Blocks(blocks=(Block(layers=(0, 4), operator=operator),))
    return Recipe(sources=sources, dtype="float32", body=body)


@given(weights=st.tuples(*[st.floats(-1.5, 1.5)] * 3), densities=st.tuples(*[st.floats(0, 1)] * 3))
@LIGHT
def test_evo_lora(
    folders: list[Path],
    merge: Callable[[Operator, str], Tensor],
    weights: tuple[float, ...],
    densities: tuple[float, ...],
) -> None:
    adapters = open_sources(folders, 0)[1:]
    for name in (MATRIX, OTHER, "model.norm.weight"):
        expected: Tensor | float = 0.0
        for adapter, weight, density in zip(adapters, weights, densities, strict=True):
            assert isinstance(adapter, Adapter)
            if (own := adapter.factors(name)) is None or density == 0.0:
                continue
            down = own.down.double()
            count = max(1, int(density * down.numel()))
            limit = down.abs().flatten().sort(descending=True).values[count - 1]
            expected = expected + weight * 2.0 * own.up.double() @ (down * (down.abs() >= limit))
        found = merge(EvoLora(weights=weights, densities=densities), name)
        torch.testing.assert_close(found, torch.zeros_like(found) + expected, rtol=1e-5, atol=1e-6)


def test_a_negative_weight_is_one(merge: Callable[[Operator, str], Tensor]) -> None:
    one, minus = (merge(EvoLora(weights=(w, 0, 0), densities=(1, 1, 1)), MATRIX) for w in (1.0, -1.0))
    torch.testing.assert_close(minus, -one, rtol=0, atol=1e-7)
    assert one.norm() > 0


@given(seed=st.integers(0, 500), scale=st.floats(-2, 2).filter(lambda s: abs(s) > 0.1))
@LIGHT
def test_lego_of_every_unit_is_the_scaled_sum(seed: int, scale: float) -> None:
    parts = factors(seed, (2, 3), scale=scale)
    up, down = lego(parts, 99)
    total = sum(each.delta().double() for each in parts)
    torch.testing.assert_close(up @ down, (2.5 / 5) ** 0.5 * total, rtol=1e-6, atol=1e-6)


def test_lego_of_equal_adapters_is_the_adapter() -> None:
    (only,) = factors(1, (3,))
    up, down = lego([only] * 4, None)
    assert down.shape == (3, 6)
    torch.testing.assert_close(up @ down, only.delta().double(), rtol=1e-6, atol=1e-6)


def test_lego_keeps_the_mean_length_of_a_cluster() -> None:
    one, other = factors(2, (1,))[0], factors(3, (1,))[0]
    up, down = lego([one, other], 1)
    units = [torch.cat([f.up.flatten(), f.down.flatten()]).double() * 0.5**0.5 for f in (one, other)]
    merged = torch.cat([up.flatten(), down.flatten()])
    assert float(merged.norm()) == pytest.approx(float(sum(unit.norm() for unit in units) / 2))
    assert float(torch.cosine_similarity(merged, sum(units), dim=0)) > 1 - 1e-9


def test_lego_is_the_same_each_time_and_of_the_rank_asked_for() -> None:
    parts = factors(4, (4, 4, 4))
    (up, down), (again, _) = lego(parts, 5), lego(parts, 5)
    assert torch.equal(up, again)
    assert up.shape[1] == down.shape[0] <= 5
    assert lego(parts, None)[0].shape[1] <= 4


@pytest.mark.parametrize(
    "operator", [LoraLego(units=3, scale=0.8), EvoLora(weights=(0.5, -0.4, 1), densities=(0.5, 1, 0.3), scale=0.7)]
)
def test_the_merge_is_written_as_an_adapter(
    folders: list[Path], merge: Callable[[Operator, str], Tensor], tmp_path: Path, operator: Operator
) -> None:
    write_adapter(recipe_of(folders, operator), tmp_path / "merged")
    written = Adapter.on(Checkpoint.open(folders[0]), tmp_path / "merged")
    for name in (MATRIX, OTHER):
        found = written.factors(name)
        assert found is not None
        torch.testing.assert_close(found.delta().double(), merge(operator, name), rtol=1e-5, atol=1e-6)


def test_a_search_over_whole_models_is_refused_before_it_begins(folders: list[Path], family: list[Path]) -> None:
    space = ParameterSpace(
        settings=ParameterSpaceSettings(operator="lora_lego"),
        sources=tuple(Source(path=str(folder)) for folder in folders),
        expert_names=("a", "b", "c"),
        layers=4,
    )
    check_adapters(space, folders)
    with pytest.raises(BadSearch, match=r"lora_lego merges LoRA adapters, and .*expert1 is a whole model"):
        check_adapters(space, family)
