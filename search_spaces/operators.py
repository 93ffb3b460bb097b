"""The merge operators a recipe can name, with their parameters. What they compute is in `evomerge.merging`.

`weights` and `densities` of the task-vector operators hold one number per expert: the sources of the recipe in
order, the base left out. Those of `linear` hold one number per source.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from search_spaces.canonical import Frozen

Density = Annotated[float, Field(ge=0.0, le=1.0)]


class Linear(Frozen):
    """Weighted mean: ``sum_i w_i theta_i``, divided by ``sum_i w_i`` when `normalize`."""

    kind: Literal["linear"] = "linear"
    weights: tuple[float, ...] = Field(min_length=1, description="one per source")
    normalize: bool = True


class Slerp(Frozen):
    """Spherical interpolation of two sources by ``t``: 0 is the first of `between`, 1 the second."""

    kind: Literal["slerp"] = "slerp"
    between: tuple[int, int] = Field(description="positions of the two sources")
    t: float = Field(ge=0.0, le=1.0)


class TaskArithmetic(Frozen):
    """``theta_0 + scale * sum_i w_i tau_i``, divided by ``sum_i w_i`` when `normalize` (Ilharco et al. 2023)."""

    kind: Literal["task_arithmetic"] = "task_arithmetic"
    weights: tuple[float, ...] = Field(min_length=1, description="one per expert")
    normalize: bool = False
    scale: float = Field(default=1.0, description="mergekit's lambda")


class Ties(Frozen):
    """Trim to the largest `densities` of each task vector, elect signs, disjoint merge (Yadav et al. 2023)."""

    kind: Literal["ties"] = "ties"
    weights: tuple[float, ...] = Field(min_length=1, description="one per expert")
    densities: tuple[Density, ...] = Field(min_length=1, description="share of elements kept, one per expert")
    normalize: bool = True
    scale: float = 1.0


class DareLinear(Frozen):
    """Drop elements at random, keeping `densities`, rescale, then task arithmetic (Yu et al. 2024)."""

    kind: Literal["dare_linear"] = "dare_linear"
    weights: tuple[float, ...] = Field(min_length=1, description="one per expert")
    densities: tuple[Density, ...] = Field(min_length=1, description="share of elements kept, one per expert")
    normalize: bool = False
    rescale: bool = True
    scale: float = 1.0


class DareTies(Frozen):
    """Drop elements at random instead of the smallest ones, then elect signs and merge as TIES does."""

    kind: Literal["dare_ties"] = "dare_ties"
    weights: tuple[float, ...] = Field(min_length=1, description="one per expert")
    densities: tuple[Density, ...] = Field(min_length=1, description="share of elements kept, one per expert")
    normalize: bool = True
    rescale: bool = True
    scale: float = 1.0


Operator = Annotated[Linear | Slerp | TaskArithmetic | Ties | DareLinear | DareTies, Field(discriminator="kind")]
OPERATORS: dict[str, type[Linear | Slerp | TaskArithmetic | Ties | DareLinear | DareTies]] = {
    "linear": Linear,
    "slerp": Slerp,
    "task_arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare_linear": DareLinear,
    "dare_ties": DareTies,
}
