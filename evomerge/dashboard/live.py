"""What the record holds now: every search is read once, then only what is new."""

from __future__ import annotations

import threading

from evomerge.columns import NONE
from evomerge.results import Results
from evomerge.standing import standing
from evomerge.store import Store


class Live:
    """The searches of one database as they are now, for any number of threads."""

    def __init__(self, storage: str) -> None:
        """``storage``: URL of the database.

        Raises:
            BadSearch: it cannot be opened.
        """
        self.store = Store(storage)
        self.known: dict[str, Results] = {}  # what has been read, by name
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of all searches, the newest first."""
        return self.store.names()[::-1]

    def results(self, name: str) -> Results:
        """Return the search called ``name`` as it is now; an equal answer is the same object.

        Raises:
            BadSearch: there is none, or it cannot be read.
        """
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            known = self.known.get(name)
            now = known.newer() if known else Results.of(self.store.search(name))
            self.known[name] = now
            return now


def version(results: Results) -> str:
    """Return a text that changes whenever something is recorded, or a driver comes or goes."""
    known = results.candidates.evaluations
    last = int(known.ids[-1]) if len(known.ids) else NONE
    now = f"{results.record.row.seconds:.0f}.{standing(results).words}"
    return f"{results.record.row.id}.{len(results.candidates)}.{last}.{now}"
