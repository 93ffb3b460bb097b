"""What every operator owes its users, whatever it computes: a merge, the documented limit or a clear refusal.

Operators come from the registry, so that a new one is tested here as soon as it can be named in a recipe.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_statistics import calibrate, prompts_for
from operator_settings import needed
from pretend_devices import pretended
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from evomerge.errors import BadRecipe, CandidateFailed
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import DTYPES, MergeEngine
from evomerge.merging.opening import open_sources
from search_spaces.genes import Genome
from search_spaces.operators import OPERATORS, MergeOperator
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.recipe import Block, Blocks, Recipe, Source

MATRIX, VECTOR = "model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"
DOCS = Path(__file__).resolve().parents[3] / "docs" / "operators.md"
every = pytest.mark.parametrize("kind", OPERATORS)
OF_MODELS = [kind for kind in OPERATORS if not OPERATORS[kind].needs_adapters]
every_of_models = pytest.mark.parametrize("kind", OF_MODELS)


def every_with(field: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", [kind for kind in OPERATORS if field in OPERATORS[kind].model_fields])


@dataclass
class Family:
    """A base and its experts on disk, as many as one operator takes."""

    folders: list[Path]
    kind: str

    @property
    def experts(self) -> int:
        return len(self.folders) - 1

    @property
    def engine(self) -> MergeEngine:
        checkpoints = open_sources(self.folders, 0)
        return MergeEngine(checkpoints, names=checkpoints[0].names)

    def space(self) -> ParameterSpace:
        return ParameterSpace(
            settings=ParameterSpaceSettings(operator=self.kind, **needed(self.kind, self.experts)),
            sources=tuple(Source(path=str(folder)) for folder in self.folders),
            expert_names=tuple(f"e{i}" for i in range(self.experts)),
            layers=4,
            prompts=prompts_for(self.experts).digest,
        )

    def operators(self) -> Iterator[MergeOperator]:
        """The operator at the start of its space, and in the corners where all genes are low or high."""
        space = self.space()
        for values in (space.genes.start, space.genes.low, space.genes.high):
            yield space.decode(Genome(values)).body.blocks[0].operator

    @property
    def operator(self) -> MergeOperator:
        return next(self.operators())

    def recipe(self, operator: MergeOperator, *, dtype: str = "float32", **changes: Any) -> Recipe:
        body = Blocks(blocks=(Block(layers=(0, 4), operator=operator),))
        sources = tuple(Source(path=str(folder)) for folder in self.folders)
        return calibrate(Recipe(**({"sources": sources, "dtype": dtype, "body": body} | changes)))


def save(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 4}')
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def lora(folder: Path, random: torch.Generator) -> Path:
    """An adapter of rank 2 on the matrix of the layers."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    stem = f"base_model.model.{MATRIX.removesuffix('.weight')}"
    sides = {f"{stem}.lora_A.weight": (2, 6), f"{stem}.lora_B.weight": (9, 2)}
    tensors = {name: torch.randn(shape, generator=random) * 0.1 for name, shape in sides.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def takes(kind: str) -> int:
    return OPERATORS[kind].most_experts or 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def family(tmp_path: Path, kind: str) -> Family:
    """Experts near their base, in tensors of one and two dimensions, inside and outside the layers."""
    random = torch.Generator().manual_seed(1)
    shapes = {MATRIX: (9, 6), VECTOR: (7,), "model.embed_tokens.weight": (8, 5), "lm_head.weight": (8, 5)}
    base = {name: torch.randn(shape, generator=random) * 0.05 for name, shape in shapes.items()}
    folders = [save(tmp_path / "base", base)]
    for number in range(1, takes(kind) + 1):
        moved = {n: t + torch.randn(t.shape, generator=random) * 0.01 for n, t in base.items()}
        adapter = OPERATORS[kind].needs_adapters
        folders.append(lora(tmp_path / str(number), random) if adapter else save(tmp_path / str(number), moved))
    return Family(folders, kind)


@pytest.fixture
def odd(tmp_path: Path, kind: str) -> Family:
    """Tensors of one element, of one row or column, of zeros, equal to the base's, opposite to one another."""

    def tensors(number: int) -> dict[str, Tensor]:
        sign = (-1.0) ** number
        inside = {
            "zero": torch.zeros(3, 2),
            "same": torch.arange(6.0).view(2, 3),
            "single": torch.tensor([[0.5 + number]]),
            "scalar": torch.tensor(0.25 * number),
            "one": torch.tensor([0.1 * number]),
            "column": torch.arange(4.0)[:, None] * number,
            "row": torch.arange(4.0)[None] * number,
            "opposite": torch.tensor([[1.0, -2.0], [0.5, 3.0]]) * sign,
            "rank_one": torch.arange(3.0)[:, None] * torch.tensor([[1.0, -1.0, 2.0]]) * number,
            "only_one_moved": torch.eye(3) * (number == 1),
        }
        outside = {"model.embed_tokens.weight": torch.ones(2, 2) * number, "model.norm.weight": torch.ones(1)}
        return {f"model.layers.{i % 4}.{name}.weight": t for i, (name, t) in enumerate(inside.items())} | outside

    return Family([save(tmp_path / str(i), tensors(i)) for i in range(takes(kind) + 1)], kind)


def merged(
    family: Family, operator: MergeOperator, names: Iterable[str] | None = None, **changes: Any
) -> dict[str, Any]:
    """Return the tensors of a merge; those that fail the candidate are left out."""
    engine, found = family.engine, {}
    for name in names or engine.order:
        try:
            found[name] = engine.merge_tensor(family.recipe(operator, **changes), name)
        except (CandidateFailed, BadRecipe) as refusal:
            assert len(str(refusal)) > 20  # it says what and why
    return found


def in_place(family: Family, recipe: Recipe, devices: dict[str, str]) -> dict[str, Tensor]:
    """Return what the engine writes into tensors on ``devices``."""
    engine, shapes = family.engine, open_sources(family.folders, 0)[0]
    dtype = DTYPES[recipe.dtype]
    out = {name: torch.empty(shapes.info(name).shape, dtype=dtype, device=devices[name]) for name in engine.order}
    engine.merge(recipe, out)
    return {name: tensor.cpu() for name, tensor in out.items()}


@every
def test_merges_spread_over_devices_are_those_on_one(
    family: Family, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [family.recipe(operator, dtype=dtype) for operator in family.operators() for dtype in DTYPES]
    names = family.engine.order
    spread = {name: "cuda:1" if "layers.1" in name else "cuda:0" for name in names}
    with pretended(monkeypatch, free={0: 1 << 30, 1: 1 << 30}):
        for recipe in recipes:
            try:
                wanted = in_place(family, recipe, dict.fromkeys(names, "cuda:0"))
            except (CandidateFailed, BadRecipe) as refusal:
                with pytest.raises(type(refusal)):
                    in_place(family, recipe, spread)
                continue
            found = in_place(family, recipe, spread)
            assert all(torch.equal(found[name], wanted[name]) for name in names)


def with_fields(operator: MergeOperator, **fields: Any) -> MergeOperator:
    return type(operator).model_validate(dict(operator) | fields)


@every
def test_merges_are_finite_and_the_same_wherever_they_are_made(family: Family, kind: str) -> None:
    one, other = family.engine, family.engine
    for operator in family.operators():
        exact = merged(family, operator)
        for dtype in ("float32", "bfloat16", "float16") if exact else ():
            recipe = family.recipe(operator, dtype=dtype)
            out = {name: torch.full_like(tensor, math.nan, dtype=DTYPES[dtype]) for name, tensor in exact.items()}
            one.merge(recipe, out)
            for name, tensor in out.items():
                assert torch.isfinite(tensor).all()
                assert torch.equal(tensor, other.merge_tensor(recipe, name))
                assert torch.equal(tensor, exact[name].to(DTYPES[dtype]))
    assert merged(family, family.operator).keys() == set(one.order)


@every
def test_the_recipe_reads_back_and_the_page_names_the_operator(family: Family, kind: str) -> None:
    recipe = family.recipe(family.operator)
    assert Recipe.model_validate_json(recipe.to_json()) == recipe
    assert f"\n| `{kind}` | " in DOCS.read_text(encoding="utf-8")


@every_of_models
def test_odd_tensors_give_numbers_or_fail_the_candidate(odd: Family, kind: str) -> None:
    for operator in odd.operators():
        for name, tensor in merged(odd, operator).items():
            assert torch.isfinite(tensor).all(), name
    assert merged(odd, odd.operator)


@every_of_models
def test_experts_that_are_the_base_give_the_base(family: Family, kind: str) -> None:
    alike = Family(family.folders[:1] * len(family.folders), kind)
    base = Checkpoint.open(family.folders[0])
    for operator in alike.operators():
        if not operator.needs_base:
            continue
        found = merged(alike, operator)
        assert found
        assert all(torch.equal(tensor, base.tensor(name)) for name, tensor in found.items())


@every_with("densities")
def test_a_density_of_zero_keeps_nothing(family: Family, kind: str) -> None:
    operator = family.operator
    base = Checkpoint.open(family.folders[0])
    found = merged(family, with_fields(operator, densities=(0.0,) * family.experts))
    assert found.keys() == set(base.names)
    assert all(torch.equal(tensor, base.tensor(name)) for name, tensor in found.items())


@every_with("weights")
def test_weights_that_cancel(family: Family, kind: str) -> None:
    """A candidate that fails, or a step that is no longer than what the weights ask for."""
    operator = family.operator
    start = (0.0,) if operator.per_source else ()
    weights = (*start, 1.0, -1.0, *(0.0,) * (family.experts - 2))
    switched = {"normalize": True} if "normalize" in type(operator).model_fields else {}
    try:
        cancelling = with_fields(operator, weights=weights, **switched)
    except ValidationError:
        return  # refused
    sources = open_sources(family.folders, 0)
    for name, tensor in merged(family, cancelling).items():
        base = sources[0].tensor(name) if operator.needs_base else torch.zeros(())
        longest = sum(float((source.tensor(name) - base).norm()) for source in sources[1:3])
        assert float((tensor - base).norm()) <= 2 * longest


@every_of_models
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_overflows_fails_the_candidate(tmp_path: Path, kind: str, dtype: str) -> None:
    """Experts of 6e4 and weights of 1e34: beyond float16, and partly beyond float32."""
    base = {MATRIX: torch.full((4, 4), 3e4) + torch.eye(4), VECTOR: torch.full((4,), 3e4)}
    models = [base, *({n: t * 2.1 + i for n, t in base.items()} for i in range(takes(kind)))]
    family = Family([save(tmp_path / str(i), model) for i, model in enumerate(models)], kind)
    large = {"weights", "scale", "t"} & type(family.operator).model_fields.keys()
    grown = {name: 1e34 if name != "weights" else (1e34,) * len(family.operator.weights) for name in large}
    for fields in ({}, grown):
        try:
            operator = with_fields(family.operator, **fields)
        except ValidationError:
            continue
        for tensor in merged(family, operator, dtype=dtype).values():
            assert torch.isfinite(tensor).all()


@every_of_models
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_source_that_is_not_finite_fails_the_candidate(family: Family, kind: str, bad: float) -> None:
    for number in range(1, len(family.folders)):
        engine = family.engine
        for name in (MATRIX, VECTOR):
            engine._checkpoints[number].tensor(name).view(-1)[1] = bad  # the mapping is private to this process
            with pytest.raises(CandidateFailed):
                engine.merge_tensor(family.recipe(family.operator), name)


@every
def test_a_missing_base_is_refused_unless_none_is_needed(family: Family, kind: str) -> None:
    operator = family.operator
    if operator.needs_base:
        with pytest.raises(ValidationError, match=rf"{kind} .*needs a base"):
            family.recipe(operator, base=None)
    else:
        more = {"metrics": (0.3, *operator.metrics)} if "metrics" in type(operator).model_fields else {}
        assert merged(family, with_fields(operator, **more), base=None)


@every
def test_a_wrong_number_of_models_is_refused(family: Family, kind: str) -> None:
    operator = family.operator
    sources = family.recipe(operator).sources
    for changed in (sources[:-1], (*sources, *sources[1:])):
        if listed := [f for f in ("weights", "densities", "metrics") if isinstance(getattr(operator, f, None), tuple)]:
            with pytest.raises(ValidationError, match=rf"{kind} needs one of {listed[0]}"):
                family.recipe(operator, sources=changed)
    for field in {"source", "between"} & type(operator).model_fields.keys():
        wrong = 9 if field == "source" else (1, 9)
        with pytest.raises(ValidationError, match="position of|different sources"):
            family.recipe(with_fields(operator, **{field: wrong}))
    if operator.fewest_experts > 1:
        with pytest.raises(ValidationError, match=f"at least {operator.fewest_experts}"):
            family.recipe(operator, sources=sources[: operator.fewest_experts])


@every
def test_parameters_out_of_range_are_refused(family: Family, kind: str) -> None:
    operator = family.operator
    for spec in operator.knobs:
        wrong = [math.nan, math.inf, -math.inf]
        wrong += [limit + step for limit, step in zip(spec.limits, (-0.1, 0.1), strict=True) if math.isfinite(limit)]
        for value in wrong:
            given = getattr(operator, spec.field)
            with pytest.raises(ValidationError):
                with_fields(operator, **{spec.field: (value,) * len(given) if spec.per_expert else value})


@pytest.mark.parametrize("kind", [kind for kind in OPERATORS if OPERATORS[kind].needs_adapters])
def test_operators_on_adapters_refuse_whole_models(family: Family, kind: str) -> None:
    whole = Family([family.folders[0]] * len(family.folders), kind)
    with pytest.raises(BadRecipe, match="is no LoRA adapter"):
        whole.engine.merge_tensor(whole.recipe(whole.operator), MATRIX)
