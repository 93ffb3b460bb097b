"""The tables of the record, and opening a database."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text

from evomerge.errors import BadSearch

SCHEMA_VERSION = 2
BUSY_SECONDS = 30  # another process may be writing another search into the same file

metadata = MetaData()

versions = Table("evomerge_schema", metadata, Column("version", Integer, primary_key=True))

searches = Table(
    "searches",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("file", Text, nullable=False),  # the search file, canonical JSON
    Column("plan", Text, nullable=False),  # what was resolved from it: sources, genes, documents, suite digest
    Column("created", Float, nullable=False),  # seconds since the epoch
    Column("seconds", Float, nullable=False, default=0.0),  # wall time that drivers have spent on it
)

candidates = Table(
    "candidates",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("search_id", ForeignKey("searches.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("origin", Text, nullable=False),  # seed, optimizer or baseline
    Column("name", Text),
    Column("genome", LargeBinary),
    Column("recipe", Text, nullable=False),
    Column("recipe_digest", Text, nullable=False),
    Column("parents", Text, nullable=False, default="[]"),  # candidate numbers, JSON
    Column("asked_at", Integer),  # place in the sequence of asks and tells
    Column("created", Float, nullable=False),
    Index("candidates_by_number", "search_id", "number", unique=True),
    Index("candidates_by_recipe", "search_id", "recipe_digest"),
    Index("candidates_by_origin", "search_id", "origin"),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("candidate_id", ForeignKey("candidates.id"), nullable=False),
    Column("search_id", ForeignKey("searches.id"), nullable=False),
    Column("split", Text, nullable=False),  # search, validation or test
    Column("documents_digest", Text, nullable=False),
    Column("told_at", Integer),  # place in the sequence of asks and tells
    Column("answered_from", ForeignKey("evaluations.id")),  # the evaluation of an equal recipe
    Column("failure_kind", Text),
    Column("failure_message", Text),
    Column("stopped", Text),  # JSON; set where racing ended the evaluation early, so that its scores are estimates
    Column("cost", Text, nullable=False),  # JSON
    Column("created", Float, nullable=False),
    Index("evaluations_by_candidate", "candidate_id"),
    Index("evaluations_by_search", "search_id", "split"),
)

scores = Table(
    "scores",
    metadata,
    Column("evaluation_id", ForeignKey("evaluations.id"), primary_key=True),
    Column("objective", Text, primary_key=True),
    Column("value", Float(53), nullable=False),
    Column("standard_error", Float(53)),
    Column("tie_break", Float(53)),
    Column("documents", LargeBinary, nullable=False),
)


def open_engine(storage: str, *, create: bool) -> sa.Engine:
    """Open the database at the SQLAlchemy URL ``storage``; with ``create`` missing tables are made.

    Raises:
        BadSearch: the URL is wrong, the file cannot be opened or written, is not a database, or was written by
            another version of evomerge.
    """
    try:
        url = sa.make_url(storage)
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS} if _is_sqlite(url) else {})
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        raise BadSearch(f"storage {masked(storage)}: {error}; expected for example sqlite:///evomerge.db") from None
    if _is_sqlite(url):
        sa.event.listen(engine, "connect", _configure_sqlite)
        if not create and not _sqlite_exists(url):
            raise BadSearch(f"storage {masked(storage)}: no such file; is this the folder where the search was run?")
    try:
        _prepare(engine, create=create)
    except sa.exc.DBAPIError as error:
        raise BadSearch(f"storage {masked(storage)}: {explain_database(error)}") from None
    return engine


def explain_database(error: sa.exc.DBAPIError) -> str:
    """Return what a database error means for the user, on one line."""
    text = " ".join(str(error.orig).split())
    remedies = {
        "readonly": "the file or its folder is read-only; make it writable or name another storage",
        "unable to open": "the file cannot be opened; does its folder exist, and may you write there?",
        "locked": f"another process has kept it locked for {BUSY_SECONDS} s; wait for it or end it",
        "not a database": "the file is no SQLite database; name another storage",
        "disk is full": "the disk is full; make room and run the same command again",
        "disk I/O": "the disk could not be read or written; is it full?",
    }
    return next((f"{text}: {remedy}" for key, remedy in remedies.items() if key in text), text)


def masked(storage: str) -> str:
    """Return a storage URL without its password."""
    try:
        return sa.make_url(storage).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "(not a URL)"


def _is_sqlite(url: sa.URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _sqlite_exists(url: sa.URL) -> bool:
    return url.database is not None and Path(url.database).exists()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    if not isinstance(connection, sqlite3.Connection):
        return
    # WAL lets readers look while a driver writes. NORMAL survives the death of any process; only a power cut can
    # take back the last commits, and then the candidates are simply measured again.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _prepare(engine: sa.Engine, *, create: bool) -> None:
    if create:
        metadata.create_all(engine)
    with engine.begin() as connection:
        if not create and not sa.inspect(connection).has_table("evomerge_schema"):
            raise BadSearch(f"storage {masked(str(engine.url))}: holds no evomerge searches")
        version = connection.execute(sa.select(versions.c.version)).scalar()
        if version is None and create:
            connection.execute(versions.insert().values(version=SCHEMA_VERSION))
        elif version == 1:
            _add_stopped(connection)
        elif version != SCHEMA_VERSION:
            place = masked(str(engine.url))
            raise BadSearch(f"storage {place}: written with schema {version}, this evomerge reads {SCHEMA_VERSION}")


def _add_stopped(connection: sa.Connection) -> None:
    """Bring a database of version 1, whose evaluations are all complete, to version 2."""
    if "stopped" not in {column["name"] for column in sa.inspect(connection).get_columns("evaluations")}:
        connection.execute(sa.text("ALTER TABLE evaluations ADD COLUMN stopped TEXT"))
    connection.execute(versions.update().values(version=2))
