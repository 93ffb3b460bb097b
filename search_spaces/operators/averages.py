"""Operators on whole weights: averages, interpolations and copies that need no base."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

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
