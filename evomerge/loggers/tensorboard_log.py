"""TensorBoard, by the writer that comes with torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.loggers.contract import LoggedSearch


class TensorBoardLog:
    """One folder of event files a search; what a run that was killed wrote beyond the record is hidden."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._writer: Any = None

    def begin(self, search: LoggedSearch) -> None:
        """Open the folder of ``search``."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self._folder / f"{search.name}-{search.key[:8]}"
        self._writer = SummaryWriter(str(folder), purge_step=search.step + 1 if search.step else None)
        text = yaml.safe_dump(dict(search.file), sort_keys=False, allow_unicode=True)
        self._writer.add_text("search file", "".join(f"    {line}\n" for line in text.splitlines()), search.step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add points."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self) -> None:
        """Write everything and close the file."""
        self._writer.close()
