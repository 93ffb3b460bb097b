"""The recipe: everything needed to rebuild one merged model bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from search_spaces.canonical import Frozen, canonical_json, digest
from search_spaces.operators import Linear, Operator
from search_spaces.tiles import MosaicBody
from search_spaces.vocabulary import Vocabulary

PER_MODEL = ("weights", "densities", "gammas", "spreads", "metrics")
Dtype = Literal["float32", "bfloat16", "float16"]
MOST_LAYERS = 10_000  # more than any model has: a block up to here covers all


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: object) -> bool:
    return value == ()


class Source(Frozen):
    """One checkpoint that a recipe reads: a folder or a Hub id, and what was found there."""

    path: str = Field(min_length=1, description="folder or Hub id")
    revision: str | None = Field(default=None, description="commit of a Hub id")
    digest: str | None = Field(default=None, description="SHA-256 over the weights and the config")
    preparation: str | None = Field(
        default=None,
        exclude_if=_is_none,
        description="SHA-256 of the record of how it was aligned or compressed; follows from the content",
    )
    tokenizer: str | None = Field(
        default=None,
        exclude_if=_is_none,
        description="SHA-256 over the tokenizer's files of a source that gives the merged model its tokenizer; no part "
        "of the recipe's digest",
    )

    @property
    def identity(self) -> str:
        """What makes two sources the same: the content when it is known, the place otherwise."""
        return self.digest or f"{self.path}@{self.revision or ''}"


class Block(Frozen):
    """One operator for the tensors of some layers whose names match one of `tensors`.

    Tensors before the stack of layers (token embeddings) count as layer 0, those after it (final norm, head)
    as the last layer.
    """

    layers: tuple[int, int] = Field(description="first layer and one past the last")
    tensors: tuple[str, ...] = Field(
        default=("*",), min_length=1, description="shell-style patterns (* ? []) on the tensor's whole name"
    )
    operator: Operator
    length: float | None = Field(
        default=None,
        gt=0.0,
        description="norm of what is added to the base, tensor by tensor, over the mean norm of the task vectors",
        exclude_if=_is_none,
    )
    lines: tuple[float, float] | None = Field(
        default=None,
        description="[alpha, beta]: what is added to the base is multiplied by alpha + beta l / (L - 1) in layer l of "
        "L, and by alpha outside the stack (LiNeS, Wang et al. 2025)",
        exclude_if=_is_none,
    )

    @property
    def has_step(self) -> bool:
        """Whether the operator's result is moved nearer to the base or farther from it."""
        return self.length is not None or self.lines is not None

    @model_validator(mode="after")
    def _layers_not_empty(self) -> Block:
        first, stop = self.layers
        if not 0 <= first < stop:
            raise ValueError(f"layers must be [first, stop) with 0 <= first < stop, got [{first}, {stop})")
        return self


class Blocks(Frozen):
    """The body of a parameter-space recipe. The first block that matches a tensor decides it."""

    kind: Literal["blocks"] = "blocks"
    blocks: tuple[Block, ...] = Field(min_length=1)
    mask_seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the random masks (DARE)")


def _with_kind(value: Any) -> Any:
    return {"kind": "blocks", **value} if isinstance(value, dict) else value


Merge = Annotated[Blocks | MosaicBody, Field(discriminator="kind"), BeforeValidator(_with_kind)]


class Hop(Frozen):
    """One step of a path: the residual stream times `scale` runs through layer `layer` of slot `slot`."""

    slot: int = Field(ge=0, description="position among the slots of the path")
    layer: int = Field(ge=0)
    scale: float = 1.0


class PathBody(Frozen):
    """The body of a data-flow recipe: the layers that a token flows through (Akiba et al. 2025).

    A slot is a model whose layers can be visited: a source as it is, or a merge of all sources. Embeddings, final norm
    and head are those of slot 0 (*model A*).
    """

    kind: Literal["path"] = "path"
    slots: tuple[int | Merge, ...] = Field(min_length=1, description="position of a source, or the body of a merge")
    hops: tuple[Hop, ...] = Field(description="at least one")
    signed: bool = Field(default=False, description="whether scales may be negative")

    @model_validator(mode="after")
    def _can_be_walked(self) -> PathBody:
        if not self.hops:
            raise ValueError("a path needs at least one layer, got none")
        for number, hop in enumerate(self.hops):
            if hop.slot >= len(self.slots):
                raise ValueError(f"hop {number} visits slot {hop.slot}, but there are {len(self.slots)} slots")
            if hop.scale == 0.0:
                raise ValueError(f"hop {number}: a scale of 0 would forget the prompt; expected any other number")
            if hop.scale < 0.0 and not self.signed:
                raise ValueError(f"hop {number}: scale {hop.scale:g} is negative; write signed: true to allow that")
        return self

    @property
    def stream_scales(self) -> tuple[float, ...]:
        """What the stream has been multiplied by when it enters each hop: the running products C_t of the scales."""
        return tuple(accumulate((hop.scale for hop in self.hops), lambda c, scale: c * scale))

    @property
    def scaled(self) -> bool:
        """Whether any scale is not 1."""
        return any(hop.scale != 1.0 for hop in self.hops)

    @property
    def merged_slots(self) -> tuple[Blocks | MosaicBody, ...]:
        """The slots that are merges."""
        return tuple(slot for slot in self.slots if not isinstance(slot, int))


Body = Annotated[Blocks | MosaicBody | PathBody, Field(discriminator="kind"), BeforeValidator(_with_kind)]


class Recipe(Frozen):
    """Immutable description of one merged model; see `digest` for its identity."""

    format: Literal["evomerge-recipe-1"] = "evomerge-recipe-1"
    sources: tuple[Source, ...] = Field(min_length=1)
    base: int | None = Field(default=0, description="position of the base in sources; none for a plain average")
    tokenizer: int = Field(default=0, ge=0, description="position of the source that gives tokenizer and config")
    dtype: Dtype = "bfloat16"
    vocabulary: Vocabulary | None = Field(
        default=None, exclude_if=_is_none, description="tokens, where the sources' differ; none: they must not differ"
    )
    packages: tuple[str, ...] = Field(
        default=(),
        exclude_if=_is_empty,
        description="package==version of every package that brings an operator; no part of the digest",
    )
    body: Body

    @property
    def operators(self) -> tuple[Operator, ...]:
        """The operators of all blocks, those of a path's slots included, in order."""
        bodies = self.body.merged_slots if isinstance(self.body, PathBody) else (self.body,)
        return tuple(block.operator for each in bodies if isinstance(each, Blocks) for block in each.blocks)

    @property
    def experts(self) -> tuple[int, ...]:
        """Positions of the sources that are not the base, in order."""
        return tuple(i for i in range(len(self.sources)) if i != self.base)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON, with each source named by its content."""
        value = self.model_dump(mode="json", exclude={"packages"})
        value["sources"] = [source.identity for source in self.sources]
        return digest(value)

    def to_json(self) -> str:
        """Return the canonical JSON; `Recipe.model_validate_json` reads it back."""
        return canonical_json(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _positions_exist(self) -> Recipe:
        count = len(self.sources)
        for name, position in (("base", self.base), ("tokenizer", self.tokenizer)):
            if position is not None and not 0 <= position < count:
                raise ValueError(f"{name} is source {position}, but there are {count} sources (0 to {count - 1})")
        for position in self.vocabulary.positions() if self.vocabulary is not None else ():
            if not 0 <= position < count:
                raise ValueError(f"vocabulary names source {position}, but there are {count} (0 to {count - 1})")
        self._check_body(self.body)
        return self

    def _check_body(self, body: Blocks | MosaicBody | PathBody) -> None:
        count = len(self.sources)
        if isinstance(body, PathBody):
            for slot in body.slots:
                if not isinstance(slot, int):
                    self._check_body(slot)
                elif not 0 <= slot < count:
                    raise ValueError(f"a slot is source {slot}, but there are {count} sources (0 to {count - 1})")
        elif isinstance(body, MosaicBody):
            _check_rows(body, count)
        else:
            self._check_blocks(body)

    def slot(self, position: int) -> Recipe:
        """Return the recipe of slot ``position`` of a path: a merge, or a source as it is.

        Raises:
            TypeError: the recipe is no path.
        """
        if not isinstance(self.body, PathBody):
            raise TypeError(f"only a path has slots, this is a recipe of {self.body.kind}")
        slot = self.body.slots[position]
        if isinstance(slot, int):
            slot = alone(slot, len(self.sources))
        return Recipe.model_validate(dict(self) | {"body": slot})

    def _check_blocks(self, body: Blocks) -> None:
        for block in body.blocks:
            self._check_operator(block.operator)
            if block.has_step and self.base is None:
                raise ValueError("length and lines measure the way from the base, and the recipe has none")

    def _check_operator(self, operator: Operator) -> None:
        count, experts = len(self.sources), len(self.experts)
        between = getattr(operator, "between", None)
        if between is not None and (len(set(between)) != 2 or not all(0 <= i < count for i in between)):
            raise ValueError(f"{operator.kind} is between two different sources of {count}, got {between}")
        if operator.needs_base and self.base is None:
            raise ValueError(f"{operator.kind} merges task vectors and needs a base; linear and slerp do not")
        if operator.needs_base and between is not None and self.base in between:
            raise ValueError(f"{operator.kind} is between two experts, got {between} with the base {self.base}")
        source = getattr(operator, "source", None)
        if source is not None and (source >= count or operator.needs_base and source == self.base):
            what = "an expert" if operator.needs_base else "a source"
            raise ValueError(f"{operator.kind}: source is the position of {what} (of {count} sources), got {source}")
        if operator.needs_base and experts < operator.fewest_experts:
            raise ValueError(f"{operator.kind} merges at least {operator.fewest_experts} experts, got {experts}")
        expected, kind = (count, "source") if operator.per_source else (experts, "expert")
        for name in PER_MODEL:
            values = getattr(operator, name, None)
            if values is not None and len(values) != expected:
                raise ValueError(f"{operator.kind} needs one of {name} per {kind} ({expected}), got {len(values)}")


def alone(position: int, sources: int) -> Blocks:
    """Return the body that is one of ``sources`` models as it is."""
    weights = tuple(float(i == position) for i in range(sources))
    return Blocks(blocks=(Block(layers=(0, MOST_LAYERS), operator=Linear(weights=weights)),))


def slot_names(slots: Iterable[object], source_names: Sequence[str]) -> tuple[str, ...]:
    """Return a name for every slot of a path: that of the source, or merge, merge-2, ..."""
    names: list[str] = []
    merges = 0
    for slot in slots:
        merges += not isinstance(slot, int)
        merged = f"merge-{merges}" if merges > 1 else "merge"
        names.append(source_names[slot] if isinstance(slot, int) else merged)
    return tuple(names)


def _check_rows(body: MosaicBody, sources: int) -> None:
    for chromosome in body.chromosomes:
        for row in chromosome.coefficients:
            if len(row) != sources:
                raise ValueError(
                    f"chromosome {chromosome.name} needs a coefficient per source ({sources}), got {len(row)}"
                )
