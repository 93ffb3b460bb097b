"""Operators on task vectors, ``tau_i = theta_i - theta_0``: their lists hold one number per expert."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from search_spaces.operators.base import (
    DENSITY,
    GAMMA,
    SPREAD,
    TENSOR,
    WEIGHT,
    Densities,
    Gammas,
    KnobSpec,
    MergeOperator,
    Scope,
    Spreads,
    Weights,
)

Vectors = Literal["tensor", "rows", "columns"]


class TaskArithmetic(MergeOperator):
    """``theta_0 + scale * sum_i w_i tau_i``, divided by ``sum_i w_i`` when `normalize` (Ilharco et al. 2023)."""

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)

    kind: Literal["task_arithmetic"] = "task_arithmetic"
    weights: Weights
    normalize: bool = False
    scale: float = Field(default=1.0, description="mergekit's lambda")


class Ties(MergeOperator):
    """Trim to the largest `densities` of each task vector, elect signs, disjoint merge (Yadav et al. 2023).

    Trimmed is every tensor, as in mergekit, or with `scope` model the whole task vector, as in the paper.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY)

    kind: Literal["ties"] = "ties"
    weights: Weights
    densities: Densities
    scope: Scope = TENSOR
    normalize: bool = True
    scale: float = 1.0


class DareLinear(MergeOperator):
    """Drop elements at random, keeping `densities`, rescale, then task arithmetic (Yu et al. 2024)."""

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY)

    kind: Literal["dare_linear"] = "dare_linear"
    weights: Weights
    densities: Densities
    normalize: bool = False
    rescale: bool = True
    scale: float = 1.0


class DareTies(MergeOperator):
    """Drop elements at random instead of the smallest ones, then elect signs and merge as TIES does."""

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY)

    kind: Literal["dare_ties"] = "dare_ties"
    weights: Weights
    densities: Densities
    normalize: bool = True
    rescale: bool = True
    scale: float = 1.0


class Breadcrumbs(MergeOperator):
    """Keep the largest `densities` of each task vector below its largest `gammas`, then task arithmetic.

    Model Breadcrumbs (Davari and Belilovsky 2024). Of n elements ``int(density n)`` are kept; fewer of the largest
    are dropped where ``gamma n`` of them would not leave as many.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY, GAMMA)

    kind: Literal["breadcrumbs"] = "breadcrumbs"
    weights: Weights
    densities: Densities
    gammas: Gammas
    normalize: bool = False
    rescale: bool = Field(default=False, description="give what is kept the L1 norm of the whole")
    scale: float = 1.0


class BreadcrumbsTies(MergeOperator):
    """Select as `Breadcrumbs` does, then elect signs and merge as TIES does."""

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY, GAMMA)

    kind: Literal["breadcrumbs_ties"] = "breadcrumbs_ties"
    weights: Weights
    densities: Densities
    gammas: Gammas
    normalize: bool = False
    rescale: bool = False
    scale: float = 1.0


class DellaLinear(MergeOperator):
    """Drop elements at random, small ones more often, rescale, then task arithmetic (Deep et al. 2024).

    Within each row of a matrix the probability of being kept grows linearly with the rank by magnitude, from
    ``density - eps`` to ``density + eps`` with ``eps = spread min(density, 1 - density)``: valid for every spread.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY, SPREAD)

    kind: Literal["della_linear"] = "della_linear"
    weights: Weights
    densities: Densities
    spreads: Spreads
    normalize: bool = False
    rescale: bool = True
    scale: float = 1.0


class Della(MergeOperator):
    """Drop as `DellaLinear` does, then elect signs and merge as TIES does."""

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT, DENSITY, SPREAD)

    kind: Literal["della"] = "della"
    weights: Weights
    densities: Densities
    spreads: Spreads
    normalize: bool = True
    rescale: bool = True
    scale: float = 1.0


class Sce(MergeOperator):
    """Select, calculate, erase (Wan et al. 2024, FuseChat): ``theta_0 + scale * sum_i a_i e_i d_i / sum_i a_i e_i``.

    ``d_i`` is the task vector on the `select_topk` of the elements whose variance over the experts is largest (of
    those where it is not zero), ``a_i`` its share of the sum of squares, ``e_i`` 1 where its sign is that of the
    sum of all ``d_i`` and 0 elsewhere.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (
        KnobSpec("select_topk", "select_topk", (0.1, 1.0), (0.0, 1.0), 0.5, per_expert=False),
    )

    kind: Literal["sce"] = "sce"
    select_topk: float = Field(default=1.0, ge=0.0, le=1.0, description="share of elements selected")
    scale: float = 1.0


class NuSlerp(MergeOperator):
    """Spherical interpolation of two experts' task vectors by `t`, lengths kept.

    ``theta_0 + sin((1 - t) a) / sin a tau_1 + sin(t a) / sin a tau_2``, a the angle between them (Shoemake 1985;
    mergekit's nuslerp with a base). t outside [0, 1] goes on along the arc.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (KnobSpec("t", "t", (0.0, 1.0), start=0.5, per_expert=False),)
    most_experts: ClassVar[int | None] = 2
    pair: ClassVar[bool] = True

    kind: Literal["nuslerp"] = "nuslerp"
    between: tuple[int, int] = Field(description="positions of the two experts")
    t: float
    vectors: Vectors = Field(
        default="tensor",
        description="what has an angle of its own: the whole tensor, each row or each column",
        exclude_if=lambda value: value == "tensor",
    )


class MultiSlerp(MergeOperator):
    """``theta_0 + sum_i w_i |tau_i| * m / |m|`` with ``m = sum_i w_i tau_i / |tau_i|``, per tensor (mergekit).

    The weighted mean of the directions at the weighted mean of the lengths. `normalize` divides the weights by
    their sum first.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (WEIGHT,)

    kind: Literal["multislerp"] = "multislerp"
    weights: Weights
    normalize: bool = True


class ModelStock(MergeOperator):
    """``theta_0 + t^power * mean_i tau_i`` with ``t = K c / (1 + (K - 1) c)`` (Jang et al. 2024, eq. 6).

    ``c`` is the mean cosine between the K task vectors, per tensor or (`filter_wise`) per row, and 0 where it is
    negative: t lies in [0, 1].
    `power` is ours: 1 is the paper's, less goes further towards the mean, more stays closer to the base.
    """

    knobs: ClassVar[tuple[KnobSpec, ...]] = (
        KnobSpec("power", "power", (0.1, 3.0), (1e-6, 1e6), 1.0, per_expert=False),
    )
    fewest_experts: ClassVar[int] = 2

    kind: Literal["model_stock"] = "model_stock"
    power: float = Field(default=1.0, ge=1e-6, le=1e6, description="exponent on the share of the mean")
    filter_wise: bool = Field(default=False, description="a t for every row", exclude_if=lambda value: not value)
