"""Operators on whole weights: averages and interpolations that need no base."""

from __future__ import annotations

from typing import ClassVar, Literal

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
    pair: ClassVar[bool] = True

    kind: Literal["slerp"] = "slerp"
    between: tuple[int, int] = Field(description="positions of the two sources")
    t: float = Field(ge=0.0, le=1.0)
