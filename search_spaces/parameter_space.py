"""Parameter space: one operator whose parameters differ by expert, layer group and tensor group.

Follows the parameter-space search of Akiba et al. 2025 (Nature Machine Intelligence 7:195) and generalises the
genome of mergekit-evolve; `search_spaces.presets` reproduces both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from search_spaces.genes import Gene, Genes, Genome
from search_spaces.near_names import hint
from search_spaces.operator_settings import Bounds, OperatorSettings, ShareBounds
from search_spaces.operators import OPERATORS, KnobSpec, MergeOperator, Operator, operator_class
from search_spaces.recipe import Block, Blocks, Dtype, Recipe, Source
from search_spaces.vocabulary import Vocabulary

INSTALL = "if a plug-in brings it, install its package"


def _known(kind: str) -> str:
    if operator_class(kind) is None:
        raise ValueError(f"operator {kind!r} is not known{hint(kind, OPERATORS)}; {INSTALL}")
    return kind


OperatorKind = Annotated[str, AfterValidator(_known), WithJsonSchema({"enum": list(OPERATORS), "type": "string"})]
TENSOR_GROUPS: dict[str, tuple[str, ...]] = {
    "self_attn": ("*.self_attn.*", "*.attn.*", "*.attention.*"),
    "mlp": ("*.mlp.*", "*.feed_forward.*", "*.block_sparse_moe.*"),
    "norms": ("*norm*", "*.ln_1.*", "*.ln_2.*", "*.ln_f.*"),
    "embeddings": ("*embed*", "*.wte.*", "*.wpe.*", "lm_head.*", "*.lm_head.*"),
}
REST = "rest"
PRESETS: dict[str, dict[str, Any]] = {  # see search_spaces.presets
    "sakana": {
        "operator": "dare_ties",
        "weight": (0.0, 1.0),
        "weight_start": 0.5,
        "density": (0.0, 1.0),
        "density_start": 0.5,
    },
}


class ParameterSpaceSettings(OperatorSettings):
    """The `space` section of a search file for ``kind: parameter``."""

    kind: Literal["parameter"] = "parameter"
    operator: OperatorKind = "task_arithmetic"
    layer_groups: int = Field(default=1, ge=1, description="groups of consecutive layers with genes of their own")
    tensor_groups: tuple[str | dict[str, tuple[str, ...]], ...] = Field(
        default=(), description="self_attn, mlp, norms, embeddings or {name: [patterns]}; the rest is a group too"
    )
    smooth: bool = Field(default=False, description="layer groups are knots, interpolated linearly over depth")
    weight: Bounds = (0.0, 1.5)
    weight_start: float | None = None
    density: ShareBounds = (0.1, 1.0)
    density_start: float | None = None
    t: ShareBounds = (0.0, 1.0)
    normalize: bool = Field(default=False, description="divide by the sum of the weights")
    scale: float = Field(default=1.0, description="fixed factor on the merged task vector (mergekit's lambda)")
    rescale: bool = Field(default=True, description="DARE: undo the loss of length by dropping")

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "preset" not in value:
            return value
        rest = {key: part for key, part in value.items() if key != "preset"}
        if value["preset"] not in PRESETS:
            raise ValueError(f"preset {value['preset']!r} is not known{hint(str(value['preset']), PRESETS)}")
        return {**PRESETS[value["preset"]], **rest}

    @model_validator(mode="after")
    def _groups_are_known(self) -> ParameterSpaceSettings:
        list(_named_groups(self))
        return self

    @model_validator(mode="after")
    def _settings_fit_the_operator(self) -> ParameterSpaceSettings:
        self.check_operator(self.operator)
        return self


class TensorGroup(NamedTuple):
    """A name and the patterns of the tensors in it."""

    name: str
    patterns: tuple[str, ...]


def _named_groups(settings: ParameterSpaceSettings) -> Iterator[TensorGroup]:
    seen = set()
    for entry in settings.tensor_groups:
        pairs = entry.items() if isinstance(entry, dict) else ((entry, TENSOR_GROUPS.get(entry, ())),)
        for name, patterns in pairs:
            if not patterns:
                known = ", ".join(TENSOR_GROUPS)
                raise ValueError(f"tensor group {name!r} is not known ({known}); give patterns: {{{name}: ['*.x.*']}}")
            if name in seen or name == REST:
                raise ValueError(f"tensor group {name!r} is given twice or is the name of the remainder")
            seen.add(name)
            yield TensorGroup(name, tuple(patterns))


class Knob(NamedTuple):
    """One kind of gene: its name, bounds and start, and the experts that have one each (none: one for all)."""

    name: str
    low: float
    high: float
    start: float
    experts: tuple[str, ...]


@dataclass(frozen=True)
class ParameterSpace:
    """Genes for every (layer group, tensor group, knob, expert), in that order, and the way to a recipe.

    Attributes:
        sources: base first, then the experts.
        expert_names: short names, used in gene names.
        layers: number of layers of the models.
        prompts: digest of the calibration prompts of an operator that needs statistics; no recipe without.
    """

    settings: ParameterSpaceSettings
    sources: tuple[Source, ...]
    expert_names: tuple[str, ...]
    layers: int
    dtype: Dtype = "bfloat16"
    mask_seed: int = 0
    vocabulary: Vocabulary | None = None
    prompts: str | None = None

    def __post_init__(self) -> None:
        experts = len(self.sources) - 1
        if experts != len(self.expert_names) or experts < 1:
            raise ValueError(f"{experts} experts need {experts} names (at least one), got {list(self.expert_names)}")
        if self.settings.layer_groups > self.layers:
            raise ValueError(f"layer_groups is {self.settings.layer_groups}, but the models have {self.layers} layers")
        kind = self.settings.operator
        if self.operator.pair and experts != 2:
            raise ValueError(f"{kind} merges exactly two experts, got {experts}; use task_arithmetic or ties for more")
        if self.operator.most_experts == 1 and experts != 1:
            raise ValueError(f"{kind} takes exactly one expert, got {experts}; a recipe can take others elsewhere")
        metrics = self.settings.metrics
        if metrics is not None and len(metrics) != experts:
            raise ValueError(f"{kind} needs one of metrics per expert ({experts}), got {len(metrics)}")
        if experts < self.operator.fewest_experts:
            raise ValueError(f"{kind} merges at least {self.operator.fewest_experts} experts, got {experts}")

    @cached_property
    def tensor_groups(self) -> tuple[TensorGroup, ...]:
        """Named groups in the order given, then everything that they leave."""
        named = tuple(_named_groups(self.settings))
        return (*named, TensorGroup(REST if named else "all", ("*",)))

    @cached_property
    def layer_ranges(self) -> tuple[tuple[int, int], ...]:
        """[first, stop) of each layer group; sizes differ by at most one."""
        edges = np.linspace(0, self.layers, self.settings.layer_groups + 1).round().astype(int)
        return tuple((int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True))

    @property
    def operator(self) -> type[MergeOperator]:
        """The operator whose parameters are searched."""
        operator = operator_class(self.settings.operator)
        assert operator is not None
        return operator

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        """The operator's parameters that are searched."""
        return tuple(self._knob(spec) for spec in self._specs)

    @property
    def _specs(self) -> tuple[KnobSpec, ...]:
        return (*self.operator.knobs, *self.settings.steps)

    def _knob(self, spec: KnobSpec) -> Knob:
        experts = self.expert_names if spec.per_expert else ()
        return Knob(spec.name, *self.settings.bounds(spec), self._start(spec), experts)

    def _start(self, spec: KnobSpec) -> float:
        start: float | None = getattr(self.settings, f"{spec.name}_start", None)
        if start is None:
            start = max(1.0 / len(self.expert_names), 0.5) if spec.start is None else spec.start
        return _inside(start, self.settings.bounds(spec))

    @cached_property
    def genes(self) -> Genes:
        """Names read ``knob/expert/layers/tensors``; parts that are not searched are left out."""
        return Genes(tuple(self._make_genes()))

    @property
    def in_words(self) -> str:
        """How large the space is."""
        return f"{len(self.genes)} genes"

    def _make_genes(self) -> Iterator[Gene]:
        for position, (first, stop) in enumerate(self.layer_ranges):
            where = f"knot-{position}" if self.settings.smooth else f"layers-{first}-{stop - 1}"
            for group in self.tensor_groups:
                for knob in self.knobs:
                    for expert in knob.experts or ("",):
                        parts = [knob.name, expert]
                        parts += [where] if self.settings.layer_groups > 1 else []
                        parts += [group.name] if len(self.tensor_groups) > 1 else []
                        yield Gene("/".join(p for p in parts if p), knob.low, knob.high, knob.start)

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of ``genome``.

        Raises:
            ValueError: the genome has the wrong length or leaves the bounds.
        """
        values = self.genes.check(genome).values
        width = sum(max(len(knob.experts), 1) for knob in self.knobs)
        table = values.reshape(len(self.layer_ranges), len(self.tensor_groups), width)
        blocks = []
        for layers, row in self._rows(table):
            for group, numbers in zip(self.tensor_groups, row, strict=True):
                blocks.append(self._block(layers, group, numbers))
        return self.recipe(tuple(blocks))

    def _rows(self, table: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Yield ([first, stop), (tensor groups, width) values): one per layer group, or per layer when smooth."""
        if not self.settings.smooth or len(table) == 1:
            yield from zip(self.layer_ranges, table, strict=True)
            return
        depth = np.linspace(0.0, len(table) - 1.0, self.layers)
        for layer, at in enumerate(depth):
            lower = min(int(at), len(table) - 2)
            share = at - lower
            yield (layer, layer + 1), (1.0 - share) * table[lower] + share * table[lower + 1]

    def _block(self, layers: tuple[int, int], group: TensorGroup, numbers: np.ndarray) -> Block:
        steps = [spec.field for spec in self.settings.steps]
        split = len(numbers) - len(steps)
        step = self.settings.step_of(dict(zip(steps, numbers[split:].tolist(), strict=True)))
        return Block(layers=layers, tensors=group.patterns, operator=self._operator(numbers[:split]), **step)

    def _operator(self, numbers: np.ndarray) -> Operator:
        left = iter(numbers.tolist())
        fields: dict[str, Any] = {}
        for spec in self.operator.knobs:
            fields[spec.field] = tuple(next(left) for _ in self.expert_names) if spec.per_expert else next(left)
        if self.operator.is_calibrated() and self.prompts is None:
            raise ValueError(f"{self.settings.operator} needs calibration prompts, and this space has none")
        settings = dict(self.settings) | self.settings.options | {"prompts": self.prompts}
        return cast(Operator, self.operator.model_validate(self.operator.in_space(fields, settings)))

    def recipe(self, blocks: tuple[Block, ...]) -> Recipe:
        """Return a recipe over this space's sources with ``blocks`` as its body."""
        return Recipe(
            sources=self.sources,
            base=0,
            tokenizer=0,
            dtype=self.dtype,
            vocabulary=self.vocabulary,
            body=Blocks(blocks=blocks, mask_seed=self.mask_seed),
        )

    def plain(self, weights: tuple[float, ...], *, linear: bool = True) -> Genome | None:
        """Return the genome that is exactly ``base + sum_i weights_i (expert_i - base)``, or None where there is none.

        Args:
            linear: whether it is a linear combination in which the base has no part of its own.
        """
        settings = self.settings
        exact = settings.operator == "task_arithmetic" and settings.scale == 1.0 and not settings.normalize
        exact = exact or (linear and settings.operator == "linear")
        return self.constant(weights) if exact else None

    def constant(self, weights: tuple[float, ...], density: float = 1.0) -> Genome | None:
        """Return the genome with these expert weights in every group, or None where the bounds exclude it."""
        fields = {"weights": list(weights), "densities": [density] * len(weights)}
        if any(spec.field not in fields for spec in self._specs):
            return None
        numbers = [number for spec in self.operator.knobs for number in fields[spec.field]]
        genome = Genome(np.tile(numbers, len(self.layer_ranges) * len(self.tensor_groups)))
        return genome if self.genes.contains(genome) else None


def _inside(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
