"""What a logger is, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class LoggedSearch:
    """One search, for a logger.

    Attributes:
        key: the same for every run of this search, and of no other one: who continues it continues its curves.
        step: new evaluations on search documents that are recorded; curves go on behind it.
        file: the search file as JSON types, without passwords.
    """

    name: str
    key: str
    step: int
    file: Mapping[str, Any]


class RunLogger(Protocol):
    """Writes the curves of one search at a time. What it raises ends the logging, not the search."""

    def begin(self, search: LoggedSearch) -> None:
        """Begin or continue the curves of ``search``."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add finite ``values`` at ``step``, the number of new evaluations; names read ``group/name``."""

    def end(self) -> None:
        """Write what is not yet written of this search."""
