"""A connection to the database of a store: transactions that survive a restart of the server, errors with a remedy."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from evaluators.errors import one_line
from evomerge.driver_lock import Driver, DriverLocks, FileLocks, LockLost, ServerLocks
from evomerge.errors import BadSearch
from evomerge.schema import prepare
from evomerge.storage_url import EXAMPLES, SQLITE, masked, parse, without_passwords

T = TypeVar("T")
Passes = Callable[[sa.exc.DBAPIError | LockLost], bool]

BUSY_SECONDS = 30  # another process may be writing another search into the same database
RECONNECT_SECONDS = 120.0  # how long a server may be away: a restart, a failover
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0

# A peer that is gone without a word (power, network) is noticed within about a minute, by both ends.
_CLIENT = {
    "application_name": "evomerge",
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 50_000,  # milliseconds
}
_SERVER = {"tcp_keepalives_idle": 20, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}

_log = logging.getLogger(__name__)


class Database:
    """An open database; ``storage`` is a URL (`evomerge.storage_url`), with ``create`` missing tables are made.

    Raises:
        BadSearch: the URL is wrong, the database cannot be opened or written, is not one, or was written by another
            version of evomerge.
    """

    def __init__(self, storage: str, *, create: bool) -> None:
        self._url = parse(storage)
        self._place = masked(storage)
        self._engine = self._make_engine(create=create)
        self.locks: DriverLocks
        self.locks = FileLocks(self._engine) if self._is_sqlite else ServerLocks(self._engine)
        self._past_races(lambda: prepare(self._engine, self._place, create=create))

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Return what ``work`` reads in one transaction. It may be called again after a lost connection."""

        def attempt(_again: bool) -> T:
            with self._engine.connect() as connection:
                return work(connection)

        return self._persist(attempt, _is_lost)

    def write(self, work: Callable[[sa.Connection], T], *, done: Callable[[sa.Connection], T | None]) -> T:
        """Return what ``work`` does in one transaction, over the connection that holds the drivers' locks, if any.

        After a lost connection, whose last commit may have happened or not, ``done`` looks for what ``work`` does and
        returns the same, or None: then ``work`` is called again.

        Raises:
            BadSearch: the database cannot be written, or the server stays away.
            SearchBusy: the lock was lost with the connection, and another driver has taken the search over.
        """

        def attempt(again: bool) -> T:
            with self.locks.connection() as connection, connection.begin():
                found = done(connection) if again else None
                return work(connection) if found is None else found

        return self._persist(attempt, _is_lost)

    @contextmanager
    def driving(self, name: str) -> Iterator[None]:
        """Hold the lock of the search ``name``; see `DriverLocks`.

        Raises:
            SearchBusy: another driver holds it.
        """
        self._past_races(lambda: self.locks.acquire(name))
        try:
            yield
        finally:
            self.locks.release(name)

    def driver(self, name: str) -> Driver | None:
        """Return who drives the search ``name`` now, or None."""
        return self._past_races(lambda: self.locks.holder(name))

    def close(self) -> None:
        """Close the connections; locks that are held are released."""
        self.locks.close()
        self._engine.dispose()

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == SQLITE

    def _make_engine(self, *, create: bool) -> sa.Engine:
        if self._is_sqlite and not create and not _exists(self._url):
            raise BadSearch(f"storage {self._place}: no such file; is this the folder where the search was run?")
        try:
            if self._is_sqlite:
                engine = sa.create_engine(self._url, connect_args={"timeout": BUSY_SECONDS})
            else:
                # Connections of a pool may have died with a server that was restarted.
                engine = sa.create_engine(self._url, connect_args=_CLIENT, pool_pre_ping=True)
        except ModuleNotFoundError as error:
            remedy = "pip install 'evomerge[postgresql]'" if error.name == "psycopg" else EXAMPLES
            raise BadSearch(f"storage {self._place}: {error}; {remedy}") from None
        sa.event.listen(engine, "connect", _configure_sqlite if self._is_sqlite else _configure_postgresql)
        return engine

    def _past_races(self, work: Callable[[], T]) -> T:
        """Return what ``work`` does; of a server that is away it says so at once."""
        return self._persist(lambda _again: work(), _is_race)

    def _persist(self, attempt: Callable[[bool], T], passes: Passes) -> T:
        """Call ``attempt`` (with whether it is a repetition), for a bounded time again if it fails with what passes."""
        pause, again, give_up = FIRST_PAUSE_SECONDS, False, None
        with self._explained():
            while True:
                try:
                    return attempt(again)
                except (sa.exc.DBAPIError, LockLost) as error:
                    if not passes(error):
                        raise
                    give_up = give_up or time.monotonic() + RECONNECT_SECONDS
                    if time.monotonic() + pause > give_up:
                        raise
                    if not again:
                        text = self._text(error)
                        _log.warning("storage %s: %s; trying for %.0f s", self._place, text, RECONNECT_SECONDS)
                again = True
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DBAPIError, LockLost) as error:
            raise BadSearch(f"storage {self._place}: {explain(self._text(error))}") from None

    def _text(self, error: sa.exc.DBAPIError | LockLost) -> str:
        known = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig else error
        return without_passwords(one_line(known), self._url)


def explain(text: str) -> str:
    """Return the text of a database's error with what the user can do about it."""
    remedies = {
        "readonly": "the file or its folder is read-only; make it writable or name another storage",
        "unable to open": "the file cannot be opened; does its folder exist, and may you write there?",
        "lock timeout": f"another process has kept it locked for {BUSY_SECONDS} s; wait for it or end it",
        "locked": f"another process has kept it locked for {BUSY_SECONDS} s; wait for it or end it",
        "not a database": "the file is no SQLite database; name another storage",
        "disk is full": "the disk is full; make room and run the same command again",
        "No space left": "the server's disk is full; make room and run the same command again",
        "disk I/O": "the disk could not be read or written; is it full?",
        "password": "is the password right? PGPASSWORD or ~/.pgpass may hold it",
        "too many": "the server has no connection left; raise its max_connections or end other clients",
        "ermission denied": "the user may not do that; `GRANT` it, or name another user",
        "does not exist": "make it on the server (createdb, createuser), or name another one",
        "onnection refused": "is the server running, and can it be reached from here?",
        "resolve": "is the host's name right?",
        "timeout": "is the server running, and can it be reached from here?",
    }
    return next((f"{text}: {remedy}" for key, remedy in remedies.items() if key in text), text)


def _is_race(error: sa.exc.DBAPIError | LockLost) -> bool:
    """Return whether SQLite could not begin because others began at the same moment."""
    known = error.orig if isinstance(error, sa.exc.DBAPIError) else None
    return getattr(known, "sqlite_errorcode", None) == sqlite3.SQLITE_PROTOCOL


def _is_lost(error: sa.exc.DBAPIError | LockLost) -> bool:
    """Return whether the server, or the connection to it, is away, or the file cannot be locked; that may pass."""
    if isinstance(error, LockLost) or error.connection_invalidated or _is_race(error):
        return True
    # No statement: it could not be connected to. SQLite is then missing for good.
    return isinstance(error, sa.exc.OperationalError) and error.statement is None and not _is_sqlite_error(error)


def _is_sqlite_error(error: sa.exc.DBAPIError) -> bool:
    return isinstance(error.orig, sqlite3.Error)


def _exists(url: sa.URL) -> bool:
    return url.database is not None and Path(url.database).exists()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # WAL lets readers look while a driver writes. NORMAL survives the death of any process; only a power cut can
    # take back the last commits, and then the candidates are simply measured again.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _configure_postgresql(connection: Any, _record: Any) -> None:
    for name, value in {**_SERVER, "lock_timeout": BUSY_SECONDS * 1000}.items():
        connection.execute(f"SET {name} = {value}")
    connection.commit()
