"""The spaces that a search file can name."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field

from search_spaces.mosaic_space import MosaicSpace, MosaicSpaceSettings
from search_spaces.operators import operator_class
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.path_space import DataFlowSettings, HybridSettings, JointSettings, PathSpace

DEFAULT_KIND = "parameter"
Space: TypeAlias = ParameterSpace | MosaicSpace | PathSpace


def _with_kind(value: Any) -> Any:
    return {"kind": DEFAULT_KIND, **value} if isinstance(value, dict) else value


SpaceSettings: TypeAlias = Annotated[
    ParameterSpaceSettings | MosaicSpaceSettings | DataFlowSettings | JointSettings | HybridSettings,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]


def needs_calibration(settings: SpaceSettings) -> bool:
    """Whether an operator of the space needs statistics from calibration prompts."""
    spaces: tuple[Any, ...] = (settings,)
    if isinstance(settings, JointSettings):
        spaces = settings.models
    elif isinstance(settings, HybridSettings):
        spaces = (settings.merge,)
    kinds = [space.operator for space in spaces if isinstance(space, ParameterSpaceSettings)]
    operators = [operator_class(kind) for kind in kinds]
    return any(operator is not None and operator.is_calibrated() for operator in operators)
