"""Operators on whole weights: averages, interpolations and copies that need no base."""

from __future__ import annotations

import math
import statistics
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from search_spaces.operators.base import WEIGHT, KnobSpec, MergeOperator


class Linear(MergeOperator):
    """Weighted mean: ``sum_i w_i theta_i``, divided by ``sum_i w_i`` when `normalize`."""

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)
    needs_base: ClassVar[bool] = False
    per_source: ClassVar[bool] = True

    kind: Literal["linear"] = "linear"
    weights: tuple[float, ...] = Field(min_length=1, description="one per source")
    normalize: bool = True


class Slerp(MergeOperator):
    """Spherical interpolation of two sources by ``t``: 0 is the first of `between`, 1 the second."""

    knobs: ClassVar[tuple[KnobSpec, ...]] = (KnobSpec("t", "t", (0.0, 1.0), (0.0, 1.0), 0.5, per_expert=False),)
    needs_base: ClassVar[bool] = False
    most_experts: ClassVar[int | None] = 2
    pair: ClassVar[bool] = True

    kind: Literal["slerp"] = "slerp"
    between: tuple[int, int] = Field(description="positions of the two sources")
    t: float = Field(ge=0.0, le=1.0)


class Karcher(MergeOperator):
    """Weighted Karcher mean of the directions, at the weighted mean of the lengths, per tensor (Karcher 1977).

    ``sum_i a_i |theta_i| * argmin_u sum_i a_i angle(u, theta_i)^2`` over unit vectors u, with
    ``a_i = w_i / sum_i w_i``. mergekit's karcher is that of equal weights.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (KnobSpec("weight", "weights", (0.0, 1.5), (0.0, float("inf"))),)
    needs_base: ClassVar[bool] = False
    per_source: ClassVar[bool] = True

    kind: Literal["karcher"] = "karcher"
    weights: tuple[Annotated[float, Field(ge=0.0)], ...] = Field(min_length=1, description="one per source")
    max_iter: int = Field(default=10, ge=0, description="most steps towards the mean")
    tol: float = Field(default=1e-5, gt=0.0, description="length of a step, in radians, below which it is the mean")


class Passthrough(MergeOperator):
    """A copy of one source, ``scale * theta`` (mergekit)."""

    knobs: ClassVar[tuple[KnobSpec, ...]] = (KnobSpec("factor", "scale", (0.5, 1.5), start=1.0, per_expert=False),)
    needs_base: ClassVar[bool] = False
    most_experts: ClassVar[int | None] = 1

    kind: Literal["passthrough"] = "passthrough"
    source: int = Field(ge=0, description="position of the source")
    scale: float = 1.0


Direction = Literal["minimize", "maximize"]
Form = Literal["softmax", "ratio"]


class Mwa(MergeOperator):
    """Metrics-weighted average of checkpoints, as of one training run (Choi and Yu 2025): ``sum_i a_i theta_i``.

    `softmax`: ``a_i`` is proportional to ``exp(penalty z_i)``, z_i the metric in standard deviations above the mean;
    `ratio`: to ``m_i^penalty``, of metrics above 0. Where less is better, as for losses, the exponents are negative.
    The paper has one such penalty, whatever the number of checkpoints; its exact formula could not be had. The base,
    where there is one, has no part in it.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (
        KnobSpec("penalty", "penalty", (0.0, 5.0), (0.0, float("inf")), 1.0, per_expert=False),
    )
    needs_base: ClassVar[bool] = False

    kind: Literal["mwa"] = "mwa"
    metrics: tuple[float, ...] = Field(min_length=1, description="of the checkpoints, one per expert: losses or scores")
    direction: Direction = Field(default="minimize", description="of the metrics: losses are minimised")
    form: Form = Field(default="softmax", description="how weights follow from metrics")
    penalty: float = Field(default=1.0, ge=0.0, description="0: all count alike; the larger, the more the best counts")

    @model_validator(mode="after")
    def _ratios_are_of_positive_numbers(self) -> Mwa:
        if self.form == "ratio" and min(self.metrics) <= 0.0:
            raise ValueError(f"mwa: form ratio needs metrics above 0, got {self.metrics}; softmax takes any")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of every expert; they sum to 1."""
        if self.form == "ratio":
            places = [math.log(metric) for metric in self.metrics]
        else:
            spread = statistics.pstdev(self.metrics) or 1.0
            places = [(metric - statistics.fmean(self.metrics)) / spread for metric in self.metrics]
        sign = -1.0 if self.direction == "minimize" else 1.0
        best = max(sign * place for place in places)
        parts = [math.exp(self.penalty * (sign * place - best)) for place in places]
        return tuple(part / math.fsum(parts) for part in parts)
