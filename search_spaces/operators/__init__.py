"""The merge operators a recipe can name, with their parameters. What they compute is in `evomerge.merging`.

`weights` and `densities` of the task-vector operators hold one number per expert: the sources of the recipe in
order, the base left out. Those of `linear` hold one number per source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from search_spaces.operators.averages import Karcher, Linear, Mwa, Passthrough, Slerp
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
    Widen,
)
from search_spaces.operators.lora import EvoLora, LoraLego
from search_spaces.operators.plugged import OperatorPlugIn, ask_elsewhere, plug_in
from search_spaces.operators.spectral import Doge, IsoC, IsoCts, Knots, Opcm, SubspaceBoosting, Swudi, TsvM
from search_spaces.operators.statistical import Fisher, Ota, Rcp, RegMean, RegMeanPlus
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

_Plain = Linear | Slerp | Karcher | Passthrough | Mwa | TaskArithmetic | ModelStock | Sce | NuSlerp | MultiSlerp
_Sparse = Ties | DareLinear | DareTies | Breadcrumbs | BreadcrumbsTies | Della | DellaLinear
_Elementwise = NearSwap | ArceeFusion | Ram | RamPlus
_Competing = MagMax | Consensus | LocalizeStitch | ComPeft | Pcb | Widen
_Spectral = TsvM | IsoC | IsoCts | SubspaceBoosting | Swudi | Opcm | Doge | Knots
_Statistical = Fisher | RegMean | RegMeanPlus | Rcp | Ota
_Lora = LoraLego | EvoLora
_Any = _Plain | _Sparse | _Elementwise | _Competing | _Spectral | _Statistical | _Lora
OPERATORS: dict[str, type[_Any]] = {kind.model_fields["kind"].default: kind for kind in get_args(_Any)}


def operator_class(kind: str) -> type[MergeOperator] | None:
    """Return the operator called ``kind``, this package's own or one that another package brings; None without one."""
    return plug_in(kind) or OPERATORS.get(kind)


def _own_or_plugged(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    plugged = plug_in(kind)
    return handler(value) if plugged is None else plugged.model_validate(value)


if TYPE_CHECKING:
    Operator = _Any | OperatorPlugIn
else:
    Operator = Annotated[_Any, Field(discriminator="kind"), WrapValidator(_own_or_plugged), SerializeAsAny()]

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
    "Doge",
    "EvoLora",
    "Fisher",
    "IsoC",
    "IsoCts",
    "Karcher",
    "KnobSpec",
    "Knots",
    "Linear",
    "LocalizeStitch",
    "LoraLego",
    "MagMax",
    "MergeOperator",
    "ModelStock",
    "MultiSlerp",
    "Mwa",
    "NearSwap",
    "NuSlerp",
    "Opcm",
    "Operator",
    "OperatorPlugIn",
    "Ota",
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
    "Widen",
    "ask_elsewhere",
    "operator_class",
]
