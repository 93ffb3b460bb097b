"""The spaces that a search file can name."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field

from search_spaces.mosaic_space import MosaicSpace, MosaicSpaceSettings
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings

DEFAULT_KIND = "parameter"
Space: TypeAlias = ParameterSpace | MosaicSpace


def _with_kind(value: Any) -> Any:
    return {"kind": DEFAULT_KIND, **value} if isinstance(value, dict) else value


SpaceSettings: TypeAlias = Annotated[
    ParameterSpaceSettings | MosaicSpaceSettings, Field(discriminator="kind"), BeforeValidator(_with_kind)
]
