"""A journal file of Optuna to which finished trials are added: read once, then only where it has grown.

Optuna's own storage reads a journal from its beginning and keeps all trials, 25 kB of memory each. Who adds finished
trials needs none of those that are there: Optuna is given the entries of the studies alone, and of the trials only the
numbers of their candidates are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.storages.journal._storage import JournalOperation

_OF_STUDIES = frozenset(
    {
        JournalOperation.CREATE_STUDY,
        JournalOperation.DELETE_STUDY,
        JournalOperation.SET_STUDY_USER_ATTR,
        JournalOperation.SET_STUDY_SYSTEM_ATTR,
    }
)


class Journal(BaseJournalBackend):
    """The journal at ``path``, which need not exist. Nobody else may write it between `read` and `flush`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fresh: list[dict[str, Any]] = []  # not yet written
        self._forget()

    def _forget(self) -> None:
        self._inode: int | None = None
        self._position = 0  # up to which the file has been read
        self._of_studies: list[dict[str, Any]] = []
        self._candidates: dict[int, set[int]] = {}  # by the number that Optuna gives the study

    def read(self) -> None:
        """Take what is new in the file, and cut off a last line that was not written to its end.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is damaged.
        """
        self._fresh = []
        found = self.path.stat() if self.path.exists() else None
        if found is None or found.st_ino != self._inode or found.st_size < self._position:
            self._forget()
        if found is None:
            return
        self._inode = found.st_ino
        with self.path.open("r+b") as file:
            file.seek(self._position)
            for line in file:
                entry = _entry(line)
                if entry is None:
                    if file.read(1):
                        raise ValueError(f"the line at byte {self._position} is no JSON")
                    file.truncate(self._position)
                    return
                self._take(entry)
                self._position += len(line)

    def _take(self, entry: dict[str, Any]) -> None:
        if entry["op_code"] in _OF_STUDIES:
            self._of_studies.append(entry)
        elif entry["op_code"] == JournalOperation.CREATE_TRIAL:
            self._candidates.setdefault(entry["study_id"], set()).add(entry.get("user_attrs", {}).get("candidate"))

    def storage(self) -> JournalStorage:
        """Return the studies without their trials, to add to them; what is added is kept until `flush`."""
        return JournalStorage(self)

    def candidates(self, study: int) -> Set[int]:
        """Return the numbers of the candidates in a study, which is named by the number that Optuna gives it."""
        return self._candidates.get(study, set())

    def flush(self) -> None:
        """Write what was added."""
        if self._fresh:
            JournalFileBackend(str(self.path)).append_logs(self._fresh)
            self.read()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the studies' entries from one number on, then what was added."""
        known = len(self._of_studies)
        yield from self._of_studies[log_number_from:]
        yield from self._fresh[max(0, log_number_from - known) :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep ``logs``."""
        self._fresh += logs


def _entry(line: bytes) -> Any:
    """Return what a line says, or None if it was not written to its end: Optuna would never read it again."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
