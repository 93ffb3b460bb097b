"""Settings of a parameter space that only some operators have: bounds of their genes, and fixed options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from search_spaces.canonical import Frozen
from search_spaces.near_names import hint
from search_spaces.operators import KnobSpec, OperatorPlugIn, operator_class
from search_spaces.operators.averages import Direction, Form
from search_spaces.operators.base import MergeOperator, Scope
from search_spaces.operators.task_vectors import Vectors


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be [low, high] with low < high, got {list(bounds)}")
    return bounds


def _share(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] < 0.0 or bounds[1] > 1.0:
        raise ValueError(f"must lie within [0, 1], got {list(bounds)}")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_ordered)]
ShareBounds = Annotated[tuple[float, float], AfterValidator(_ordered), AfterValidator(_share)]


_BOUNDS: TypeAdapter[tuple[float, float]] = TypeAdapter(Bounds)


class OwnKnobs(Frozen):
    """Bounds of genes that only some operators have; none: the operator's own."""

    gamma: Bounds | None = Field(
        default=None, description="breadcrumbs: bounds of the share of largest elements dropped"
    )
    spread: Bounds | None = Field(default=None, description="della: bounds of epsilon / min(density, 1 - density)")
    select_topk: Bounds | None = Field(default=None, description="sce: bounds of the share of elements selected")
    power: Bounds | None = Field(default=None, description="model_stock: bounds of the exponent on its share")
    factor: Bounds | None = Field(
        default=None,
        description="passthrough, iso_c, iso_cts, subspace_boosting, opcm, lora_lego: bounds of the factor",
    )
    reach: Bounds | None = Field(default=None, description="nearswap: bounds of the most that an element moves")
    fence: Bounds | None = Field(default=None, description="arcee_fusion: bounds of the interquartile ranges")
    epsilon: Bounds | None = Field(default=None, description="ram: bounds of the largest change that counts as none")
    boost: Bounds | None = Field(default=None, description="ramplus_tl: bounds of the paper's r")
    boost_cap: Bounds | None = Field(default=None, description="ramplus_tl: bounds of the paper's alpha")
    selectivity: Bounds | None = Field(default=None, description="consensus: bounds of the paper's lambda")
    ratio: Bounds | None = Field(default=None, description="pcb: bounds of the share of elements that count")
    above: Bounds | None = Field(default=None, description="widen: bounds of the paper's t")
    calibration: Bounds | None = Field(default=None, description="widen: bounds of the paper's s")
    penalty: Bounds | None = Field(default=None, description="mwa: bounds of how much better checkpoints count more")


STEPS = (  # knobs of a block: every operator has them, and they are searched where bounds are given
    KnobSpec("length", "length", (0.1, 2.0), (1e-6, float("inf")), 0.7, per_expert=False),
    KnobSpec("lines_alpha", "lines_alpha", (0.0, 1.0), start=1.0, per_expert=False),
    KnobSpec("lines_beta", "lines_beta", (0.0, 1.5), start=0.0, per_expert=False),
)


class StepKnobs(Frozen):
    """Bounds of the genes of a block that every operator can have; none: no such gene."""

    length: Bounds | None = Field(
        default=None, description="bounds of the norm of the merged task vector over the experts' mean norm, per tensor"
    )
    lines_alpha: Bounds | None = Field(default=None, description="bounds of LiNeS' factor on the first layer")
    lines_beta: Bounds | None = Field(default=None, description="bounds of what LiNeS adds to it up to the last layer")

    @property
    def steps(self) -> tuple[KnobSpec, ...]:
        """The knobs of a block that are searched."""
        return tuple(spec for spec in STEPS if getattr(self, spec.name) is not None)

    @staticmethod
    def step_of(values: dict[str, float]) -> dict[str, Any]:
        """Return the fields of a block for the values of its knobs; what is not searched of LiNeS changes nothing."""
        fields: dict[str, Any] = {"length": values["length"]} if "length" in values else {}
        if "lines_alpha" in values or "lines_beta" in values:
            fields["lines"] = (values.get("lines_alpha", 1.0), values.get("lines_beta", 0.0))
        return fields


class OwnOptions(Frozen):
    """Fixed fields that only some operators have; none: the operator's default."""

    vectors: Vectors | None = Field(default=None, description="nuslerp: what has an angle of its own")
    votes: int | None = Field(default=None, ge=0, description="consensus: experts that must need an element")
    scope: Scope | None = Field(
        default=None,
        description="ties, localize_stitch, compeft, pcb, doge: of each tensor or of the whole model",
    )
    rank: float | None = Field(default=None, gt=0.0, le=1.0, description="tsv_m, swudi: share of the spectrum used")
    time: float | None = Field(default=None, gt=0.0, description="swudi: of the gradient flow")
    common: float | None = Field(default=None, ge=0.0, le=1.0, description="iso_cts: share of the common directions")
    energy: float | None = Field(
        default=None, gt=0.0, le=1.0, description="subspace_boosting: share left as it is; opcm: share protected"
    )
    filter_wise: bool | None = Field(default=None, description="model_stock: a share for every row")
    method: Literal["ties", "dare_ties", "dare_linear"] | None = Field(
        default=None, description="knots: what merges in the shared basis"
    )
    eta: float | None = Field(default=None, gt=0.0, description="doge: length of every expert's part")
    subspace: int | None = Field(default=None, ge=1, description="doge: one in so many directions is kept from change")
    keep: float | None = Field(default=None, gt=0.0, le=1.0, description="doge: share of the largest elements kept")
    iterations: int | None = Field(default=None, ge=0, description="doge: of Adam")
    rate: float | None = Field(default=None, gt=0.0, description="doge: Adam's learning rate")
    exponent: float | None = Field(
        default=None, gt=0.0, le=1.0, description="fisher: of the Fisher information; ota: of v"
    )
    off_diagonal: float | None = Field(
        default=None, ge=0.0, le=1.0, description="regmean, regmean_plus: factor on the Gram matrices off the diagonal"
    )
    protection: float | None = Field(default=None, ge=0.0, description="rcp: the paper's lambda")
    metrics: tuple[float, ...] | None = Field(default=None, description="mwa: losses or scores, one per expert")
    units: int | None = Field(default=None, ge=1, description="lora_lego: rank of the merge")
    direction: Direction | None = Field(default=None, description="mwa: minimize (losses) or maximize (scores)")
    form: Form | None = Field(default=None, description="mwa: softmax or ratio")


class OperatorSettings(OwnKnobs, StepKnobs, OwnOptions):
    """What a parameter space can say to one operator and not to another."""

    options: dict[str, Any] = Field(
        default_factory=dict,
        description="of an operator that another package brings: bounds [low, high] of its genes, values of its fields",
        exclude_if=lambda options: not options,
    )

    def check_operator(self, kind: str) -> None:
        """Refuse what the operator ``kind`` does not have.

        Raises:
            ValueError: a setting is not one of the operator's, or bounds leave what it accepts.
        """
        operator = operator_class(kind)
        assert operator is not None
        knobs = {spec.name: spec for spec in operator.knobs}
        self._check_options(operator, knobs)
        for name in sorted(OwnKnobs.model_fields.keys() - knobs.keys()):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is no parameter of {kind}, which has {', '.join(knobs)}; leave it out")
        for name in sorted(OwnOptions.model_fields.keys()):
            own = operator.model_fields.get(name)
            if own is None and getattr(self, name) is not None:
                raise ValueError(f"{name} is no option of {kind}; leave it out")
            if own is not None and own.is_required() and getattr(self, name) is None:
                raise ValueError(f"{kind} needs {name} ({OwnOptions.model_fields[name].description})")
        for name, spec in (knobs | {spec.name: spec for spec in self.steps}).items():
            low, high = self.bounds(spec)
            if low < spec.limits[0] or high > spec.limits[1]:
                raise ValueError(f"{name} of {kind} must lie within {list(spec.limits)}, got {[low, high]}")

    def bounds(self, spec: KnobSpec) -> tuple[float, float]:
        """Return the bounds of a knob of the operator: those given here, else the operator's own."""
        given: Any = self.options.get(spec.name, getattr(self, spec.name, None))
        return spec.bounds if given is None else _BOUNDS.validate_python(given)

    def _check_options(self, operator: type[MergeOperator], knobs: Iterable[str]) -> None:
        if self.options and not issubclass(operator, OperatorPlugIn):
            raise ValueError("options is for operators that other packages bring; this one has keys of its own")
        known = [*knobs, *sorted(operator.fixed_fields())]
        if strange := sorted(self.options.keys() - set(known)):
            raise ValueError(f"options: unknown key {strange[0]!r}{hint(strange[0], known)}")
