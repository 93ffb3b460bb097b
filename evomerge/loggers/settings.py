"""The `logging` section of a search file: a list of loggers, by name or with settings."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator

from evomerge.errors import BadSearch
from evomerge.loggers.contract import RunLogger
from search_spaces.canonical import Frozen


class TensorBoardSettings(Frozen):
    """Event files for TensorBoard."""

    kind: Literal["tensorboard"] = "tensorboard"
    folder: str = Field(default="runs", min_length=1, description="a folder per search is made in it")

    def make(self) -> RunLogger:
        """Return the logger."""
        from evomerge.loggers.tensorboard_log import TensorBoardLog

        return TensorBoardLog(self.folder)


class WandbSettings(Frozen):
    """Weights & Biases; the key is the environment's (WANDB_API_KEY) or that of `wandb login`."""

    kind: Literal["wandb"] = "wandb"
    project: str = Field(default="evomerge", min_length=1)
    entity: str | None = Field(default=None, description="user or team; the account's own by default")
    mode: Literal["online", "offline"] = Field(default="online", description="offline: `wandb sync` sends it later")

    def make(self) -> RunLogger:
        """Return the logger."""
        from evomerge.loggers.wandb_log import WandbLog

        return WandbLog(self.project, entity=self.entity, mode=self.mode)


class MlflowSettings(Frozen):
    """An MLflow server or store."""

    kind: Literal["mlflow"] = "mlflow"
    uri: str | None = Field(default=None, description="server, database or folder; MLFLOW_TRACKING_URI by default")
    experiment: str = Field(default="evomerge", min_length=1)

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password is not None:
            raise ValueError("holds a password, which records would keep; set MLFLOW_TRACKING_PASSWORD instead")
        return uri

    def make(self) -> RunLogger:
        """Return the logger."""
        from evomerge.loggers.mlflow_log import MlflowLog

        return MlflowLog(self.uri, experiment=self.experiment)


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AnyLogger: TypeAlias = Annotated[TensorBoardSettings | WandbSettings | MlflowSettings, Field(discriminator="kind")]
LoggerSettings: TypeAlias = Annotated[
    AnyLogger,
    BeforeValidator(_named, json_schema_input_type=AnyLogger | Literal["tensorboard", "wandb", "mlflow"]),
]


def check_installed(settings: TensorBoardSettings | WandbSettings | MlflowSettings) -> None:
    """Refuse a logger whose library is not there.

    Raises:
        BadSearch: what to install.
    """
    if find_spec(settings.kind) is None:
        raise BadSearch(f"logging: {settings.kind} is not installed; pip install 'evomerge[{settings.kind}]'")
