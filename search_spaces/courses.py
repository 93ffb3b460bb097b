"""Courses: how genes become the hops of a path through the layers of several models.

Model A is the first. A course begins with its first layer and ends with its last one, as in Akiba et al. 2025; the form
says what the genes choose in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, model_validator

from search_spaces.canonical import Frozen
from search_spaces.genes import Gene, Vector
from search_spaces.recipe import Hop

PRIOR = 0.4  # of an indicator in [-1, 1]: two first steps of CMA-ES from the decision
Scales = Literal["none", "switch", "hop", "pair"]
_PAPER = {"order": "series", "repeats": 3, "scales": "pair"}


class CourseSettings(Frozen):
    """What the spaces of paths share."""

    form: Literal["edits", "paper", "swaps"] = Field(
        default="edits",
        description="edits: bits skip layers of the first model and insert others; paper: an indicator for each layer; "
        "swaps: blocks of layers between cut points, each from one of the models",
    )
    order: Literal["depth", "series"] = Field(
        default="depth", description="inserted layers follow the same layer of the first model, or its whole stack"
    )
    repeats: int = Field(default=1, ge=1, le=8, description="how often every layer can be visited")
    blocks: int = Field(default=3, ge=2, description="swaps: blocks of layers")
    scales: Scales = Field(
        default="switch", description="one for every ordered pair of models, hop, or ordered pair of layers"
    )
    scale: tuple[float, float] = Field(default=(0.5, 2.0), description="bounds, searched as logarithms")
    signed: bool = Field(default=False, description="scales may be negative; they are then searched as they are")
    scale_start: Literal["second_moments"] | None = Field(
        default=None,
        description="second_moments: scales count from what gives the residual stream, where it enters a layer, the "
        "second moment that it has there in the layer's own model, on search documents; from 1 by default",
    )
    most_hops: int | None = Field(default=None, ge=1, description="twice the layers of a model by default")
    most_parameters: float | None = Field(default=None, gt=0.0, description="of the exported model")

    @model_validator(mode="before")
    @classmethod
    def _paper_has_defaults(cls, value: Any) -> Any:
        return {**_PAPER, **value} if isinstance(value, dict) and value.get("form") == "paper" else value

    @model_validator(mode="after")
    def _scale_holds_one(self) -> CourseSettings:
        low, high = self.scale
        if not 0.0 < low <= 1.0 <= high or low == high:
            raise ValueError(f"scale: bounds must be positive, different and hold 1 (no change), got [{low}, {high}]")
        if self.form == "swaps" and self.repeats > 1:
            raise ValueError("repeats: swaps visits every layer once; leave it out, or use edits")
        return self


class ModelSize(NamedTuple):
    """Parameters of the models, which all have the same shapes.

    Attributes:
        layers: of each layer.
        outside: of embeddings, last norm and head.
    """

    layers: tuple[int, ...]
    outside: int

    def of(self, layers: Iterable[int]) -> int:
        """Return the parameters of a model that visits ``layers``."""
        return self.outside + sum(self.layers[layer] for layer in layers)


Moments: TypeAlias = tuple[tuple[float, ...], ...]
"""(models, layers + 1): root mean square of the residual stream that enters each layer, and that leaves the last."""


class Place(NamedTuple):
    """A layer of a model that can be visited, for the `turn`-th time."""

    model: int
    layer: int
    turn: int


@dataclass(frozen=True)
class Course:
    """The genes of a path through models with so many layers each.

    Attributes:
        models: names, model A first.
        size: of each model; needed by `most_parameters`.
        moments: needed by `scale_start`.
    """

    settings: CourseSettings
    models: tuple[str, ...]
    layers: int
    size: ModelSize | None = None
    moments: Moments | None = None

    def __post_init__(self) -> None:
        if self.layers < 2:
            raise ValueError(f"a path needs models of at least two layers, got {self.layers}")
        if self.most_hops < self.layers:
            raise ValueError(f"most_hops is {self.most_hops}, but the first model alone has {self.layers} layers")
        most, size = self.settings.most_parameters, self.size
        if most is not None and size is not None and size.of(range(self.layers)) > most:
            raise ValueError(
                f"most_parameters is {most:,.0f}, but the first model alone has {size.of(range(self.layers)):,}"
            )
        if self.settings.form == "swaps" and (len(self.models) < 2 or self.layers < self.settings.blocks):
            raise ValueError(
                f"swaps needs two models and a layer for each of {self.settings.blocks} blocks, got "
                f"{len(self.models)} models of {self.layers} layers"
            )

    @property
    def most_hops(self) -> int:
        """The longest path."""
        return self.settings.most_hops or 2 * self.layers

    @property
    def most_parameters(self) -> int | None:
        """Those of the largest model that a path can be exported as; None if sizes are not known."""
        if self.size is None:
            return None
        longer = 0 if self.settings.form == "swaps" else self.most_hops - self.layers
        largest = self.size.of(range(self.layers)) + longer * max(self.size.layers)
        return min(largest, int(self.settings.most_parameters or largest))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """All places in the order of the path, the ends of model A first and last."""
        models, layers, turns = range(len(self.models)), range(self.layers), range(self.settings.repeats)
        if self.settings.order == "depth":
            places = [Place(model, layer, turn) for layer in layers for turn in turns for model in models]
        else:
            places = [Place(model, layer, turn) for turn in turns for model in models for layer in layers]
        first, last = Place(0, 0, 0), Place(0, self.layers - 1, 0)
        return (first, *(place for place in places if place not in (first, last)), last)

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """What is chosen, then the scales."""
        return (*self._choices, *self._scale_genes)

    @cached_property
    def _choices(self) -> tuple[Gene, ...]:
        if self.settings.form == "swaps":
            return tuple(self._swaps())
        free = self.places[1:-1]
        if self.settings.form == "paper":
            return tuple(Gene(f"use/{self._name(p)}", -1.0, 1.0, PRIOR if _at_home(p) else -PRIOR) for p in free)
        return tuple(Gene.integer(f"{'skip' if _at_home(p) else 'insert'}/{self._name(p)}", 0, 1, 0) for p in free)

    def _swaps(self) -> Iterator[Gene]:
        count = self.settings.blocks
        for cut in range(1, count):
            yield Gene.integer(f"cut/{cut}", 1, self.layers - 1, round(cut * self.layers / count))
        for block in range(1, count + 1):
            yield Gene.categorical(f"block/{block}", len(self.models))

    @cached_property
    def _scale_names(self) -> tuple[str, ...]:
        names, kind = self.models, self.settings.scales
        if kind == "switch":
            return tuple(f"{one}>{other}" for one in names for other in names if one != other)
        if kind == "pair":
            every = [f"{name}.{layer}" for name in names for layer in range(self.layers)]
            return tuple(f"{one}>{other}" for one in every for other in every)
        if kind == "hop" and self.settings.form == "swaps":
            return tuple(f"hop.{number}" for number in range(1, self.layers))
        return tuple(self._name(place) for place in self.places[1:]) if kind == "hop" else ()

    @property
    def _scale_genes(self) -> Iterator[Gene]:
        low, high = self.settings.scale
        bounds = (-high, high, 1.0) if self.settings.signed else (math.log(low), math.log(high), 0.0)
        return (Gene(f"scale/{name}", *bounds) for name in self._scale_names)

    def hops(self, values: Vector) -> tuple[Hop, ...]:
        """Return the hops for ``values`` of the genes, (genes,)."""
        chosen, numbers = values[: len(self._choices)], values[len(self._choices) :]
        path = self._swapped(chosen) if self.settings.form == "swaps" else self._walked(chosen)
        scales = dict(zip(self._scale_names, map(self._scale, numbers.tolist()), strict=True))
        first = Hop(slot=path[0].model, layer=path[0].layer)
        return (
            first,
            *(
                Hop(
                    slot=here.model,
                    layer=here.layer,
                    scale=self._start(before, here) * scales.get(self._scale_name(before, here), 1.0),
                )
                for before, here in pairwise(path)
            ),
        )

    def _start(self, before: Place, here: Place) -> float:
        """Return the scale of a hop whose gene says 1: exactly 1 from a layer to the next one of the same model."""
        if self.settings.scale_start is None:
            return 1.0
        if self.moments is None:
            raise ValueError("scale_start: the second moments of the models are not known")
        return self.moments[here.model][here.layer] / self.moments[before.model][before.layer + 1]

    def _walked(self, chosen: Vector) -> list[Place]:
        on = [
            (value > 0.0) == (self.settings.form == "paper" or not _at_home(place))
            for place, value in zip(self.places[1:-1], chosen.tolist(), strict=True)
        ]
        kept = [place for place, used in zip(self.places, [True, *on, True], strict=True) if used]
        own, inserted = ([place for place in kept if _at_home(place) is home] for home in (True, False))
        while inserted and not self._fits([*own, *inserted]):
            inserted.pop()  # what was inserted last first
        return [place for place in kept if _at_home(place) or place in inserted]

    def _fits(self, path: Sequence[Place]) -> bool:
        most = self.settings.most_parameters
        if len(path) > self.most_hops or most is None:
            return len(path) <= self.most_hops
        if self.size is None:
            raise ValueError("most_parameters: the sizes of the models are not known")
        return self.size.of(place.layer for place in path) <= most

    def _swapped(self, chosen: Vector) -> list[Place]:
        count = self.settings.blocks
        cuts = sorted(int(value) for value in chosen[: count - 1])
        owners = [int(value) for value in chosen[count - 1 :]]
        return [Place(owners[sum(cut <= layer for cut in cuts)], layer, 0) for layer in range(self.layers)]

    def _scale_name(self, before: Place, here: Place) -> str:
        one, other = self.models[before.model], self.models[here.model]
        match self.settings.scales:
            case "switch":
                return f"{one}>{other}"
            case "pair":
                return f"{one}.{before.layer}>{other}.{here.layer}"
            case _:
                return f"hop.{here.layer}" if self.settings.form == "swaps" else self._name(here)

    def _scale(self, value: float) -> float:
        if not self.settings.signed:
            return math.exp(value)
        return math.copysign(max(abs(value), self.settings.scale[0]), value)  # zero would forget the prompt

    def _name(self, place: Place) -> str:
        turn = f".{place.turn + 1}" if self.settings.repeats > 1 else ""
        return f"{self.models[place.model]}.{place.layer}{turn}"


def _at_home(place: Place) -> bool:
    """Whether this is model A's own visit of its layer."""
    return place.model == 0 and place.turn == 0
