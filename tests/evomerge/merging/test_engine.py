import itertools
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.errors import BadRecipe, CandidateFailed
from evomerge.merging import kernels, selection
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import DTYPES, Destination, MergeEngine
from search_spaces.operators import DareLinear, DareTies, Linear, Operator, Slerp, TaskArithmetic, Ties
from search_spaces.recipe import Block, Recipe

RecipeOf = Callable[..., Recipe]
SIGNED = st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3)
POSITIVE = st.floats(0.01, 2)
LIGHT = settings(max_examples=15, deadline=None)
EVERY = [
    Linear(weights=(1, 2, 0.5, -0.3)),
    TaskArithmetic(weights=(0.4, -0.2, 0.7), scale=1.5),
    Slerp(between=(1, 2), t=0.3),
    Ties(weights=(0.4, 0.3, 0.7), densities=(0.3, 0.5, 0.9)),
    Ties(weights=(0.4, -0.3, 0.7), densities=(0.3, 0.5, 1), normalize=False, scale=0.7),
    DareLinear(weights=(0.4, 0.3, 0.7), densities=(0.3, 0.5, 0.9)),
    DareTies(weights=(0.4, 0.3, 0.7), densities=(0.3, 0.5, 1.0)),
]


def fresh(engine: MergeEngine, checkpoints: list[Checkpoint], dtype: str = "float32") -> Destination:
    """Return a destination of one flat buffer, in the engine's order."""
    shapes = [checkpoints[0].info(name).shape for name in engine.order]
    flat = torch.full((sum(math.prod(shape) for shape in shapes),), math.nan, dtype=DTYPES[dtype])
    pieces = flat.split([math.prod(shape) for shape in shapes])
    return Destination({n: p.view(s) for n, p, s in zip(engine.order, pieces, shapes, strict=True)})


def close(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=3e-7, atol=3e-8 * scale)


def sources(checkpoints: list[Checkpoint], name: str) -> tuple[Tensor, list[Tensor]]:
    base, *experts = (checkpoint.tensor(name) for checkpoint in checkpoints)
    return base, [expert - base for expert in experts]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("operator", EVERY, ids=lambda operator: operator.kind)
def test_merge_and_merge_tensor_write_the_same_bytes(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, operator: Operator, dtype: str
) -> None:
    blocks = [
        Block(layers=(1, 3), tensors=("*mlp*", "*norm*"), operator=operator),
        Block(layers=(0, 4), operator=TaskArithmetic(weights=(0.1, 0.2, 0.3))),
    ]
    for recipe in (recipe_of(operator, dtype=dtype), recipe_of(blocks, dtype=dtype)):
        out = fresh(engine, checkpoints, dtype)
        engine.merge(recipe, out)
        alone = {name: torch.empty_like(tensor) for name, tensor in out.items()}
        engine.merge(recipe, alone)
        for name in engine.order:
            assert torch.equal(out[name], engine.merge_tensor(recipe, name))
            assert torch.equal(out[name], alone[name])
            merge, size = engine.tensor_merge(recipe, name), out[name].numel()
            pieces = [out[name].new_empty(min(1000, size - first)) for first in range(0, size, 1000)]
            for number, piece in enumerate(pieces):
                merge.fill(piece, 1000 * number)
            assert torch.equal(torch.cat(pieces), out[name].view(-1))


@pytest.mark.parametrize("operator", EVERY, ids=lambda operator: operator.kind)
def test_results_do_not_depend_on_chunks_or_on_what_is_remembered(
    checkpoints: list[Checkpoint], recipe_of: RecipeOf, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(operator)
    usual = MergeEngine(checkpoints, names=checkpoints[0].names)
    expected = {name: usual.merge_tensor(recipe, name) for name in usual.order}
    monkeypatch.setattr(selection, "CACHE_BYTES", 0)
    for small, chunk in ((1 << 16, 37), (16, 512), (16, 8)):  # 16: thresholds and draws are made again each time
        monkeypatch.setattr(selection, "SMALL", small)
        monkeypatch.setattr(selection, "_CHUNK", 1 << 16 if small > 16 else chunk)
        monkeypatch.setattr(kernels, "_CHUNK_PER_THREAD", chunk)
        other = MergeEngine(checkpoints, names=checkpoints[0].names)
        for name in usual.order[::4]:
            found = other.merge_tensor(recipe, name)
            if isinstance(operator, DareLinear | DareTies) and small == 16:
                close(found, expected[name])  # the L1 norm is summed in another order
            else:
                assert torch.equal(found, expected[name])


@given(small=st.floats(0.01, 1), large=st.floats(0.01, 1), kind=st.sampled_from(["largest", "drawn"]))
@LIGHT
def test_selections_nest_in_the_density(
    engine: MergeEngine, recipe_of: RecipeOf, small: float, large: float, kind: str
) -> None:
    small, large = min(small, large), max(small, large)
    build = Ties if kind == "largest" else DareLinear
    extra = {} if kind == "largest" else {"rescale": False}
    name = "model.layers.2.mlp.down_proj.weight"
    base = engine.merge_tensor(recipe_of(TaskArithmetic(weights=(0, 0, 0))), name)
    few, many = (
        engine.merge_tensor(recipe_of(build(weights=(1, 0, 0), densities=(density, 1, 1), **extra)), name) != base
        for density in (small, large)
    )
    assert not (few & ~many).any()


def test_recipes_that_equal_a_source_give_its_bytes(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf
) -> None:
    same = [
        (TaskArithmetic(weights=(0, 0, 0)), 0),
        (TaskArithmetic(weights=(0.7, 0.2, 1), scale=0), 0),
        (TaskArithmetic(weights=(0, 1, 0)), 2),
        (TaskArithmetic(weights=(0, 0.5, 0), scale=2), 2),
        (TaskArithmetic(weights=(0, 0.3, 0), normalize=True), 2),
        (Linear(weights=(0, 0, 0.4, 0)), 2),
        (Linear(weights=(0, 0, 1, 0), normalize=False), 2),
        (Slerp(between=(1, 3), t=0), 1),
        (Slerp(between=(1, 3), t=1), 3),
        (Ties(weights=(0.4, 0.2, 0.3), densities=(0, 0, 0)), 0),
        (Ties(weights=(0, 0, 0), densities=(1, 1, 1)), 0),
        (Ties(weights=(0, 0, 0.3), densities=(1, 1, 1)), 3),
        (DareLinear(weights=(0.3, 0.4, 0.2), densities=(0, 0, 0)), 0),
        (DareLinear(weights=(0, 1, 0), densities=(0, 1, 0)), 2),
        (DareTies(weights=(0, 0.5, 0), densities=(0.2, 1, 0.3)), 2),
    ]
    for operator, source in same:
        recipe = recipe_of(operator)
        for name in engine.order:
            assert torch.equal(engine.merge_tensor(recipe, name), checkpoints[source].tensor(name)), operator


@given(weights=st.tuples(POSITIVE, POSITIVE, POSITIVE))
@LIGHT
def test_average_of_equal_sources_is_the_source(
    family: list[Path], recipe_of: RecipeOf, weights: tuple[float, ...]
) -> None:
    checkpoint = Checkpoint.open(family[1])
    engine = MergeEngine([checkpoint] * 4, names=checkpoint.names)
    recipe = recipe_of(Linear(weights=(0.3, *weights)))
    assert all(torch.equal(engine.merge_tensor(recipe, name), checkpoint.tensor(name)) for name in engine.order)


@given(one=st.tuples(SIGNED, SIGNED, SIGNED), two=st.tuples(SIGNED, SIGNED, SIGNED))
@LIGHT
def test_task_arithmetic_is_linear_in_its_weights(
    engine: MergeEngine,
    checkpoints: list[Checkpoint],
    recipe_of: RecipeOf,
    one: tuple[float, ...],
    two: tuple[float, ...],
) -> None:
    name = "model.layers.3.self_attn.o_proj.weight"
    base = checkpoints[0].tensor(name).double()

    def delta(weights: tuple[float, ...]) -> Tensor:
        return engine.merge_tensor(recipe_of(TaskArithmetic(weights=weights)), name).double() - base

    both = tuple(a + b for a, b in zip(one, two, strict=True))
    torch.testing.assert_close(delta(both), delta(one) + delta(two), rtol=0, atol=1e-7)


def test_one_expert_of_density_one_makes_ties_task_arithmetic(engine: MergeEngine, recipe_of: RecipeOf) -> None:
    ties = recipe_of(Ties(weights=(0.6, 0, 0), densities=(1, 1, 1), normalize=False))
    plain = recipe_of(TaskArithmetic(weights=(0.6, 0, 0)))
    assert all(torch.equal(engine.merge_tensor(ties, n), engine.merge_tensor(plain, n)) for n in engine.order)


@pytest.mark.parametrize("operator", EVERY, ids=lambda operator: operator.kind)
def test_order_of_the_experts_does_not_matter(
    checkpoints: list[Checkpoint], recipe_of: RecipeOf, operator: Operator
) -> None:
    """Also not to random masks, which belong to an expert's content."""
    recipe = recipe_of(operator)
    engine = MergeEngine(checkpoints, names=checkpoints[0].names)
    for order in itertools.permutations(range(1, 4)):
        sequence = (0, *order)
        changes: dict[str, object] = {}
        if isinstance(operator, Slerp):
            changes["between"] = tuple(sequence.index(i) for i in operator.between)
        for field in ("weights", "densities"):
            values = getattr(operator, field, None)
            if values is not None:
                positions = sequence if isinstance(operator, Linear) else [i - 1 for i in order]
                changes[field] = tuple(values[i] for i in positions)
        moved = recipe_of(operator.model_copy(update=changes), sources=tuple(recipe.sources[i] for i in sequence))
        other = MergeEngine([checkpoints[i] for i in sequence], names=checkpoints[0].names)
        for name in engine.order[::6]:
            close(other.merge_tensor(moved, name), engine.merge_tensor(recipe, name), scale=4)


@pytest.mark.parametrize("normalize", [True, False])
def test_ties_with_weights_that_cancel_stays_within_the_task_vectors(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, normalize: bool
) -> None:
    recipe = recipe_of(Ties(weights=(1, -0.9, 0), densities=(1, 1, 1), normalize=normalize))
    for name in engine.order:
        base, deltas = sources(checkpoints, name)
        moved = (engine.merge_tensor(recipe, name) - base).abs()
        limit = deltas[0].abs() + deltas[1].abs()
        assert (moved <= limit * 1.0001 + 1e-6).all()


@pytest.mark.parametrize(
    "operator",
    [
        TaskArithmetic(weights=(1, -1, 0), normalize=True),
        DareLinear(weights=(0.3, 0.3, -0.6), densities=(1, 1, 0.5), normalize=True),
        Linear(weights=(1, -0.5, -0.5, 0)),
        Linear(weights=(0, 0, 0, 0)),
    ],
)
def test_weights_that_cannot_be_normalized_fail_the_candidate(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, operator: Operator
) -> None:
    recipe = recipe_of(operator)
    with pytest.raises(CandidateFailed, match="normalize"):
        engine.merge(recipe, fresh(engine, checkpoints))
    with pytest.raises(CandidateFailed, match="normalize"):
        engine.merge_tensor(recipe, engine.order[0])


@pytest.mark.parametrize("operator", EVERY, ids=lambda operator: operator.kind)
def test_equal_sources_single_elements_and_zeros_give_numbers(
    tmp_path: Path, recipe_of: RecipeOf, operator: Operator
) -> None:
    checkpoints = odd_checkpoints(tmp_path)
    engine = MergeEngine(checkpoints, names=checkpoints[0].names)
    for name in engine.order:
        assert torch.isfinite(engine.merge_tensor(recipe_of(operator), name)).all()


def odd_checkpoints(folder: Path) -> list[Checkpoint]:
    from safetensors.torch import save_file

    found = []
    for number in range(4):
        place = folder / str(number)
        place.mkdir()
        (place / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 4}')
        tensors = {
            "model.layers.0.same": torch.arange(5.0),
            "model.layers.0.zero": torch.zeros(3, 2),
            "model.layers.1.single": torch.tensor([0.5 + number]),
            "model.layers.1.scalar": torch.tensor(0.25 * number),
            "model.layers.2.column": torch.arange(4.0)[:, None] * number,
            "model.layers.3.opposite": torch.tensor([1.0, -2.0]) * (-1) ** number,
        }
        save_file(tensors, place / "model.safetensors")
        found.append(Checkpoint.open(place))
    return found


@pytest.mark.parametrize(("dtype", "weight"), [("float16", 1e9), ("bfloat16", 3e38), ("float32", 3e38)])
@pytest.mark.parametrize("kind", [TaskArithmetic, Ties])
def test_overflow_fails_the_candidate(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf, dtype: str, weight: float, kind: type
) -> None:
    extra = {"densities": (1, 1, 1), "normalize": False} if kind is Ties else {}
    recipe = recipe_of(kind(weights=(weight, weight / 2, 0), scale=1e4, **extra), dtype=dtype)
    with pytest.raises(CandidateFailed, match="NaN or infinite|beyond the range"):
        engine.merge(recipe, fresh(engine, checkpoints, dtype))
    with pytest.raises(CandidateFailed, match="NaN or infinite|beyond the range"):
        engine.merge_tensor(recipe, "model.layers.0.mlp.up_proj.weight")
    engine.merge(recipe_of(TaskArithmetic(weights=(0, 0, 1)), dtype=dtype), fresh(engine, checkpoints, dtype))


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800000])
def test_a_source_with_nan_or_infinity_fails_the_candidate(family: list[Path], recipe_of: RecipeOf, bits: int) -> None:
    own = [Checkpoint.open(folder) for folder in family]
    engine = MergeEngine(own, names=own[0].names)
    own[1].tensor("model.norm.weight")[3] = struct.unpack("<f", struct.pack("<I", bits))[0]  # private to this test
    for operator in (TaskArithmetic(weights=(1, 0, 0)), *EVERY):
        with pytest.raises(CandidateFailed, match=r"model\.norm\.weight"):
            engine.merge(recipe_of(operator), fresh(engine, own))


def test_sources_of_weight_zero_are_not_read(family: list[Path], recipe_of: RecipeOf) -> None:
    own = [Checkpoint.open(folder) for folder in family]
    engine = MergeEngine(own, names=own[0].names)
    own[2].tensor("model.norm.weight").fill_(math.nan)
    for operator in (TaskArithmetic(weights=(0.5, 0, 0.1)), Ties(weights=(0.5, 0, 0.1), densities=(0.5, 0.5, 0.5))):
        assert torch.isfinite(engine.merge_tensor(recipe_of(operator), "model.norm.weight")).all()


def test_sixteen_bit_results_are_the_float32_results_rounded_once(engine: MergeEngine, recipe_of: RecipeOf) -> None:
    for operator, dtype in itertools.product(EVERY, ("bfloat16", "float16")):
        for name in engine.order[::6]:
            exact = engine.merge_tensor(recipe_of(operator), name)
            assert torch.equal(engine.merge_tensor(recipe_of(operator, dtype=dtype), name), exact.to(DTYPES[dtype]))


def test_uncovered_tensor(engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf) -> None:
    recipe = recipe_of([Block(layers=(0, 3), operator=TaskArithmetic(weights=(1, 1, 1)))])
    with pytest.raises(BadRecipe, match="no block"):
        engine.merge(recipe, fresh(engine, checkpoints))
    with pytest.raises(BadRecipe, match="no block"):
        engine.merge_tensor(recipe, "lm_head.weight")


def test_wrong_number_of_sources(checkpoints: list[Checkpoint], recipe_of: RecipeOf) -> None:
    engine = MergeEngine(checkpoints[:2], names=checkpoints[0].names)
    with pytest.raises(BadRecipe, match="4 sources, but 2 checkpoints"):
        engine.merge_tensor(recipe_of(EVERY[0]), "lm_head.weight")


def test_wrong_destination(engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf) -> None:
    out = dict(fresh(engine, checkpoints))
    with pytest.raises(BadRecipe, match=r"bfloat16.*float32"):
        engine.merge(recipe_of(EVERY[0], dtype="bfloat16"), out)
    with pytest.raises(BadRecipe, match=r"lm_head\.weight.*no such tensor"):
        engine.merge(recipe_of(EVERY[0]), {n: t for n, t in out.items() if n != "lm_head.weight"})
    with pytest.raises(ValueError, match="contiguous"):
        engine.merge(recipe_of(EVERY[0]), out | {"lm_head.weight": torch.empty(32, 48).t()})


def test_unknown_tensor(engine: MergeEngine, recipe_of: RecipeOf) -> None:
    with pytest.raises(BadRecipe, match="ghost"):
        engine.merge_tensor(recipe_of(EVERY[0]), "ghost")


def test_memory_needed_is_bounded(engine: MergeEngine) -> None:
    assert 0 < engine.private_bytes_needed < 256 << 20
