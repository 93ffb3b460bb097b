"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.loggers.contract import LoggedSearch

STEP = "evaluations"


class WandbLog:
    """One run a search, continued under its id."""

    def __init__(self, project: str, *, entity: str | None, mode: str) -> None:
        self._project, self._entity, self._mode = project, entity, mode
        self._run: Any = None

    def begin(self, search: LoggedSearch) -> None:
        """Begin or continue the run of ``search``."""
        import wandb

        self._run = wandb.init(
            project=self._project,
            entity=self._entity,
            mode=self._mode,
            id=search.key,
            name=search.name,
            resume="allow",
            config=dict(search.file),
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True
            ),
        )
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add points, with the number of evaluations as their place."""
        self._run.log({STEP: step, **values})

    def end(self) -> None:
        """Send the rest."""
        self._run.finish()
