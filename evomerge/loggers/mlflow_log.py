"""MLflow, by its client: nothing global is set."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from evomerge.loggers.contract import LoggedSearch

KEY = "evomerge.search"
_REFUSED = re.compile(r"[^\w\-. /]")
_LONGEST = 6000  # characters of a parameter


class MlflowLog:
    """One run a search, found again by a tag."""

    def __init__(self, uri: str | None, *, experiment: str) -> None:
        self._uri, self._experiment = uri, experiment
        self._client: Any = None
        self._run = ""

    def begin(self, search: LoggedSearch) -> None:
        """Begin or continue the run of ``search``."""
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        runs = self._client.search_runs([experiment], filter_string=f"tags.`{KEY}` = '{search.key}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(experiment, run_name=search.name, tags={KEY: search.key}).info.run_id
        for section, value in search.file.items():
            self._client.log_param(self._run, section, str(value)[:_LONGEST])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add points in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_REFUSED.sub("_", name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self) -> None:
        """Say that the run is over."""
        self._client.set_terminated(self._run)
