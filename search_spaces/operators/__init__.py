"""The merge operators a recipe can name, with their parameters. What they compute is in `evomerge.merging`.

`weights` and `densities` of the task-vector operators hold one number per expert: the sources of the recipe in
order, the base left out. Those of `linear` hold one number per source.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from search_spaces.operators.averages import Karcher, Linear, Passthrough, Slerp
from search_spaces.operators.base import KnobSpec, MergeOperator
from search_spaces.operators.elementwise import (
    ArceeFusion,
    ComPeft,
    Consensus,
    LocalizeStitch,
    MagMax,
    NearSwap,
    Pcb,
    Ram,
    RamPlus,
)
from search_spaces.operators.spectral import IsoC, IsoCts, SubspaceBoosting, Swudi, TsvM
from search_spaces.operators.statistical import Fisher, Rcp, RegMean, RegMeanPlus
from search_spaces.operators.task_vectors import (
    Breadcrumbs,
    BreadcrumbsTies,
    DareLinear,
    DareTies,
    Della,
    DellaLinear,
    ModelStock,
    MultiSlerp,
    NuSlerp,
    Sce,
    TaskArithmetic,
    Ties,
)

_Plain = Linear | Slerp | Karcher | Passthrough | TaskArithmetic | ModelStock | Sce | NuSlerp | MultiSlerp
_Sparse = Ties | DareLinear | DareTies | Breadcrumbs | BreadcrumbsTies | Della | DellaLinear
_Elementwise = NearSwap | ArceeFusion | Ram | RamPlus
_Competing = MagMax | Consensus | LocalizeStitch | ComPeft | Pcb
_Spectral = TsvM | IsoC | IsoCts | SubspaceBoosting | Swudi
_Statistical = Fisher | RegMean | RegMeanPlus | Rcp
_Any = _Plain | _Sparse | _Elementwise | _Competing | _Spectral | _Statistical
Operator = Annotated[_Any, Field(discriminator="kind")]
OPERATORS: dict[str, type[_Any]] = {kind.model_fields["kind"].default: kind for kind in get_args(_Any)}

__all__ = [
    "OPERATORS",
    "ArceeFusion",
    "Breadcrumbs",
    "BreadcrumbsTies",
    "ComPeft",
    "Consensus",
    "DareLinear",
    "DareTies",
    "Della",
    "DellaLinear",
    "Fisher",
    "IsoC",
    "IsoCts",
    "Karcher",
    "KnobSpec",
    "Linear",
    "LocalizeStitch",
    "MagMax",
    "MergeOperator",
    "ModelStock",
    "MultiSlerp",
    "NearSwap",
    "NuSlerp",
    "Operator",
    "Passthrough",
    "Pcb",
    "Ram",
    "RamPlus",
    "Rcp",
    "RegMean",
    "RegMeanPlus",
    "Sce",
    "Slerp",
    "SubspaceBoosting",
    "Swudi",
    "TaskArithmetic",
    "Ties",
    "TsvM",
]
