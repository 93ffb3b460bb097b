"""How often workers died with a candidate: kept on record, so that a restarted driver does not try it afresh.

A worker may have died of something else, so a candidate is tried `ATTEMPTS` times, over all runs of its search. Then it
is quarantined: its evaluation is a failure that says why, and recipes equal to it are answered with the same.
"""

from __future__ import annotations

import time

import sqlalchemy as sa

from evomerge.records import Split
from evomerge.schema import losses
from evomerge.store import SearchRecord

ATTEMPTS = 3


class Losses:
    """The losses of the search of ``record``; without one they are forgotten with this object."""

    def __init__(self, record: SearchRecord | None = None) -> None:
        self._record = record
        self._messages: dict[tuple[int, str], list[str]] = {}
        if record is not None:
            query = losses.select().where(losses.c.search_id == record.row.id).order_by(losses.c.id)
            for row in record.store.database.read(lambda connection: connection.execute(query).all()):
                self._note(row.candidate, row.split, row.message)

    def quarantined(self, candidate: int, split: Split) -> str | None:
        """Return why the candidate with this number is not to be measured on ``split``; None if it may."""
        messages = self._messages.get((candidate, split), [])
        if len(messages) < ATTEMPTS:
            return None
        return f"quarantined: {len(messages)} workers died with this candidate; the last: {messages[-1]}"

    def _note(self, candidate: int, split: str, message: str) -> None:
        self._messages.setdefault((candidate, split), []).append(message)

    def add(self, candidate: int, split: Split, message: str) -> None:
        """Commit that a worker died with the candidate, and of what as far as is known."""
        self._note(candidate, split, message)
        if self._record is None:
            return
        row = {
            "search_id": self._record.row.id,
            "candidate": candidate,
            "split": split,
            "message": message.replace("\0", ""),
            "created": time.time(),
        }
        mine = [losses.c[name] == row[name] for name in ("search_id", "candidate", "created")]

        def add(connection: sa.Connection) -> bool:
            connection.execute(losses.insert(), row)
            return True

        def is_added(connection: sa.Connection) -> bool | None:
            return connection.execute(losses.select().where(*mine)).first() is not None or None

        self._record.store.database.write(add, done=is_added)
