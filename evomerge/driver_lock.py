"""One driver a search: locks that the system releases when their holder dies, however it dies.

On SQLite the lock is one on a file beside the database, which lives as long as the process.

On PostgreSQL it is an advisory lock of one connection, and the driver writes over that same connection. So whoever
cannot hold the lock any more cannot write either. After the connection is lost, the lock is taken again before
anything is written, unless another driver had it in between: every driver leaves a token of its own in the table
`drivers`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import sqlalchemy as sa

from evomerge.errors import BadSearch, SearchBusy
from evomerge.schema import drivers

_KEY = "hashtextextended('evomerge driver ' || current_schema() || ' ' || :name, 0)"
_TRY_LOCK = sa.text(f"SELECT pg_try_advisory_lock({_KEY})")
_UNLOCK = sa.text(f"SELECT pg_advisory_unlock({_KEY})")
_IS_HELD = sa.text(
    "SELECT EXISTS (SELECT 1 FROM pg_locks, pg_database WHERE locktype = 'advisory' AND pg_locks.database = oid "
    f"AND datname = current_database() AND objsubid = 1 AND ((classid::bigint << 32) | objid::bigint) = {_KEY})"
)
_WHO_AM_I = sa.text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
_END = sa.text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid AND backend_start = :backend_start"
)


class LockLost(Exception):
    """The lock is still held by this driver's own former connection, which the server has not given up yet."""


@dataclass(frozen=True)
class Driver:
    """Who drives a search: process and host, since when in seconds since the epoch by its own clock."""

    owner: str
    since: float


class DriverLocks(Protocol):
    """The searches that this process drives."""

    def acquire(self, name: str) -> None:
        """Take the lock of the search ``name``.

        Raises:
            SearchBusy: another driver holds it.
        """

    def release(self, name: str) -> None:
        """Give the lock back; never raises, the system gives it back anyway."""

    def holder(self, name: str) -> Driver | None:
        """Return who drives the search ``name`` now, or None."""

    def connection(self) -> AbstractContextManager[sa.Connection]:
        """Open a connection to write over.

        Raises:
            SearchBusy: a lock was lost, and another driver has taken it.
            LockLost: try again.
        """

    def close(self) -> None:
        """Release all locks."""


class FileLocks:
    """Locks on files beside a SQLite database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._files: dict[str, IO[str]] = {}

    def acquire(self, name: str) -> None:
        """See `DriverLocks`."""
        file = self._path(name).open("a")
        if not any(_locked(file, fcntl.LOCK_EX, pause) for pause in (0.0, 0.05, 0.1)):  # `holder` may be looking
            file.close()
            with self._engine.connect() as connection:
                raise _busy(connection, name)
        try:
            with self._engine.begin() as connection:
                _sign(connection, name, secrets.token_hex(8))
        except BaseException:
            file.close()
            raise
        self._files[name] = file

    def release(self, name: str) -> None:
        """See `DriverLocks`."""
        if name in self._files:
            self._files.pop(name).close()

    def holder(self, name: str) -> Driver | None:
        """See `DriverLocks`."""
        if not self._path(name).exists():
            return None
        with self._path(name).open() as file:
            if _locked(file, fcntl.LOCK_SH):
                return None
        with self._engine.connect() as connection:
            return _driver(connection, name)

    def connection(self) -> AbstractContextManager[sa.Connection]:
        """See `DriverLocks`."""
        return self._engine.connect()

    def close(self) -> None:
        """See `DriverLocks`."""
        for name in list(self._files):
            self.release(name)

    def _path(self, name: str) -> Path:
        database = self._engine.url.database
        if not database or database == ":memory:":
            raise BadSearch(f"storage {self._engine.url}: a search needs a database file")
        return Path(f"{database}.{name}.lock")


class ServerLocks:
    """Advisory locks of one connection to a PostgreSQL server."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._tokens: dict[str, str] = {}  # by the name of the search
        self._connection: sa.Connection | None = None
        self._session: dict[str, Any] = {}  # the server's name for the connection

    def acquire(self, name: str) -> None:
        """See `DriverLocks`."""
        with self._holding() as connection, connection.begin():
            if not connection.execute(_TRY_LOCK, {"name": name}).scalar():
                raise _busy(connection, name)
            token = secrets.token_hex(8)
            _sign(connection, name, token)
        self._tokens[name] = token

    def release(self, name: str) -> None:
        """See `DriverLocks`."""
        self._tokens.pop(name, None)
        if self._connection is None or self._connection.invalidated:
            return
        try:
            with self._connection.begin():
                self._connection.execute(_UNLOCK, {"name": name})
        except sa.exc.DBAPIError:
            self._drop()
        if not self._tokens:
            self._drop()

    def holder(self, name: str) -> Driver | None:
        """See `DriverLocks`."""
        with self._engine.connect() as connection:
            held = connection.execute(_IS_HELD, {"name": name}).scalar()
            return _driver(connection, name) if held else None

    @contextmanager
    def connection(self) -> Iterator[sa.Connection]:
        """See `DriverLocks`."""
        if not self._tokens:
            with self._engine.connect() as connection:
                yield connection
            return
        with self._holding() as connection:
            yield connection

    def close(self) -> None:
        """See `DriverLocks`."""
        self._tokens.clear()
        self._drop()

    @contextmanager
    def _holding(self) -> Iterator[sa.Connection]:
        """The connection that holds the locks; made anew if it is lost."""
        if self._connection is None or self._connection.invalidated:
            self._drop()
            self._connect()
        assert self._connection is not None
        try:
            yield self._connection
        except sa.exc.DBAPIError as error:
            # SQLAlchemy would connect again by itself, without the locks.
            if error.connection_invalidated:
                self._drop()
            raise

    def _connect(self) -> None:
        connection = self._engine.connect()
        try:
            with connection.begin():
                if self._session:
                    connection.execute(_END, self._session)
                for name, token in self._tokens.items():
                    self._acquire_again(connection, name, token)
                session = dict(connection.execute(_WHO_AM_I).mappings().one())
        except BaseException:
            connection.invalidate()  # it may hold some of the locks
            connection.close()
            raise
        self._connection, self._session = connection, session

    def _acquire_again(self, connection: sa.Connection, name: str, token: str) -> None:
        locked = connection.execute(_TRY_LOCK, {"name": name}).scalar()
        query = sa.select(drivers.c.token).where(drivers.c.name == name)
        if connection.execute(query).scalar() != token:
            raise _busy(connection, name)
        if not locked:
            raise LockLost(f"the lock of search {name!r} is still held by the lost connection")

    def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.invalidate()  # not into the pool: it holds locks
            connection.close()


def _locked(file: IO[str], kind: int, pause_seconds: float = 0.0) -> bool:
    time.sleep(pause_seconds)
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(connection: sa.Connection, name: str, token: str) -> None:
    """Write down who drives the search ``name`` from now on."""
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    row = {"name": name, "token": token, "owner": owner, "since": time.time()}
    connection.execute(drivers.delete().where(drivers.c.name == name))
    connection.execute(drivers.insert(), row)


def _driver(connection: sa.Connection, name: str) -> Driver:
    query = sa.select(drivers.c.owner, drivers.c.since).where(drivers.c.name == name)
    row = connection.execute(query).first()
    return Driver(row.owner, row.since) if row else Driver("unknown", time.time())


def _busy(connection: sa.Connection, name: str) -> SearchBusy:
    owner = _driver(connection, name).owner
    return SearchBusy(f"search {name!r} is being run by another process ({owner}); it goes on")
