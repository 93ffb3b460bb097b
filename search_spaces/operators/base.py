"""What every merge operator says of itself: which models it needs, and which of its fields can be searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from search_spaces.canonical import Frozen

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weights = Annotated[tuple[float, ...], Field(min_length=1, description="one per expert")]
Densities = Annotated[tuple[Share, ...], Field(min_length=1, description="share of elements kept, one per expert")]

Scope = Literal["tensor", "model"]
TENSOR: Any = Field(  # default of a field of this type
    default="tensor",
    description="whether shares are of each tensor or of the whole model",
    exclude_if=lambda value: value == "tensor",
)
Gammas = Annotated[
    tuple[Share, ...], Field(min_length=1, description="share of largest elements dropped, one per expert")
]

Spreads = Annotated[
    tuple[Share, ...],
    Field(min_length=1, description="mergekit's epsilon as a share of min(density, 1 - density), one per expert"),
]


@dataclass(frozen=True)
class KnobSpec:
    """A field of an operator that a search can turn.

    Attributes:
        name: of the gene, and of the setting of a search file that gives its bounds.
        field: of the operator.
        bounds: where the search file gives none.
        limits: what the operator accepts; bounds must lie within.
        start: where the search starts, moved into the bounds; none for ``max(1 / experts, 0.5)``.
        per_expert: whether ``field`` is a tuple with one number per expert.
    """

    name: str
    field: str
    bounds: tuple[float, float]
    limits: tuple[float, float] = (float("-inf"), float("inf"))
    start: float | None = None
    per_expert: bool = True


WEIGHT = KnobSpec("weight", "weights", (0.0, 1.5))
GAMMA = KnobSpec("gamma", "gammas", (0.0, 0.05), (0.0, 1.0), 0.01)
SPREAD = KnobSpec("spread", "spreads", (0.0, 0.9), (0.0, 1.0), 0.5)
DENSITY = KnobSpec("density", "densities", (0.1, 1.0), (0.0, 1.0), 0.7)


class MergeOperator(Frozen):
    """An operator of a recipe.

    Attributes:
        knobs: the fields that a parameter space makes genes of.
        needs_base: whether it merges task vectors.
        per_source: whether its weights are one per source; otherwise one per expert.
        fewest_experts: that it can merge.
        most_experts: that a parameter space can give it; none: any number.
        needs_adapters: whether every expert must be a LoRA adapter.
        pair: whether a parameter space gives it its two models, the experts, as ``between``.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = ()
    needs_base: ClassVar[bool] = True
    per_source: ClassVar[bool] = False
    fewest_experts: ClassVar[int] = 1
    most_experts: ClassVar[int | None] = None
    pair: ClassVar[bool] = False
    needs_adapters: ClassVar[bool] = False

    @classmethod
    def fixed_fields(cls) -> set[str]:
        """Return the names of the fields that no search turns."""
        return cls.model_fields.keys() - {"kind"} - {spec.field for spec in cls.knobs}

    @classmethod
    def is_calibrated(cls) -> bool:
        """Whether it needs statistics from calibration prompts."""
        return "prompts" in cls.model_fields

    @classmethod
    def in_space(cls, numbers: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """Return the fields for the values of the knobs, by field, and the settings of a parameter space."""
        fields = {name: settings[name] for name in sorted(cls.fixed_fields()) if settings.get(name) is not None}
        fields |= numbers
        if cls.pair:
            fields["between"] = (1, 2)
        if cls.per_source:
            fields["weights"] = (0.0, *fields["weights"])
        if "source" in cls.model_fields:
            fields["source"] = 1
        return fields
