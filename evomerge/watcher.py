"""Who is told of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from evomerge.config import SearchFile
from evomerge.records import CandidateRecord, Split
from evomerge.search import Listener
from evomerge.store import SearchRecord


class Watcher(Listener, Protocol):
    """Who is told of a run's progress: a search's `Listener`, with what happens around it."""

    def say(self, what: str) -> None:
        """Something is being done before or after the evaluations."""

    def search_begins(self, record: SearchRecord, file: SearchFile) -> None:
        """The following phases belong to this search."""


class Silent:
    """A watcher that says nothing."""

    def say(self, what: str) -> None:
        """Ignore it."""

    def search_begins(self, record: SearchRecord, file: SearchFile) -> None:
        """Ignore it."""

    def phase(self, name: str, total: int, done: int) -> None:
        """Ignore it."""

    def evaluated(self, candidate: CandidateRecord, split: Split) -> None:
        """Ignore it."""


@dataclass(frozen=True)
class Several:
    """Listeners that are all told the same."""

    listeners: Sequence[Listener]

    def phase(self, name: str, total: int, done: int) -> None:
        """Tell all of it."""
        for listener in self.listeners:
            listener.phase(name, total, done)

    def evaluated(self, candidate: CandidateRecord, split: Split) -> None:
        """Tell all of it."""
        for listener in self.listeners:
            listener.evaluated(candidate, split)
