"""The tables of the record, and bringing those of older versions up to date."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text

from evomerge.errors import BadSearch
from evomerge.storage_url import SQLITE

SCHEMA_VERSION = 7
ORIGIN_INDEX = "candidates_by_origin"
EVALUATION_INDEX = "evaluations_by_search"

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

drivers = Table(  # who drives a search, or did last
    "drivers",
    metadata,
    Column("name", Text, primary_key=True),  # of the search, which may not be there yet
    Column("token", Text, nullable=False),  # new for every driver: one that lost its lock sees whether another came
    Column("owner", Text, nullable=False),
    Column("since", Float, nullable=False),
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
    Index(ORIGIN_INDEX, "search_id", "origin"),
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
    Column("truncated", Text),  # JSON: documents per task that lost the beginning of a prompt; null for none
    Column("over_limits", Text),  # JSON: documents per task whose code ran out of its limits; null for none
    Column("cost", Text, nullable=False),  # JSON
    Column("created", Float, nullable=False),
    Index("evaluations_by_candidate", "candidate_id"),
    Index(EVALUATION_INDEX, "search_id", "id"),  # in the order in which they are read, so that none sorts them
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

losses = Table(  # every time that a worker died with a candidate
    "losses",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("search_id", ForeignKey("searches.id"), nullable=False),
    Column("candidate", Integer, nullable=False),  # its number
    Column("split", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("created", Float, nullable=False),
    Index("losses_by_search", "search_id"),
)

crews = Table(  # the workers of a search as its driver saw them last
    "crews",
    metadata,
    Column("search_id", ForeignKey("searches.id"), primary_key=True),
    Column("workers", Text, nullable=False),  # JSON
    Column("seen", Float, nullable=False),
)


def prepare(engine: sa.Engine, place: str, *, create: bool) -> None:
    """Make missing tables if ``create``, and bring tables of an older version up to date.

    Any number of processes may do so at the same time: the first one does it, the others wait.

    Raises:
        BadSearch: no search was ever kept in ``place``, or another version of evomerge wrote it.
    """
    with engine.connect() as connection:
        if _version(connection) == SCHEMA_VERSION:
            return
    with engine.begin() as connection:
        _alone(connection)
        version = _version(connection)
        if version is None:
            if not create:
                raise BadSearch(f"storage {place}: holds no evomerge searches")
            metadata.create_all(connection)
            connection.execute(versions.insert().values(version=SCHEMA_VERSION))
        elif not 1 <= version <= SCHEMA_VERSION:
            raise BadSearch(f"storage {place}: written with schema {version}, this evomerge reads {SCHEMA_VERSION}")
        else:
            for migrate in MIGRATIONS[version - 1 :]:
                migrate(connection)
            connection.execute(versions.update().values(version=SCHEMA_VERSION))


def _version(connection: sa.Connection) -> int | None:
    if not sa.inspect(connection).has_table(versions.name):
        return None
    return connection.execute(sa.select(versions.c.version)).scalar()


def _alone(connection: sa.Connection) -> None:
    """Let no other process change tables until the transaction ends."""
    if connection.dialect.name == SQLITE:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's driver begins no transaction before a DDL statement
    else:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('evomerge schema', 0))"))


def _add_columns(*names: str) -> Callable[[sa.Connection], None]:
    """Text columns of evaluations; null says what was true before."""

    def add(connection: sa.Connection) -> None:
        there = {column["name"] for column in sa.inspect(connection).get_columns("evaluations")}
        for name in names:
            if name not in there:
                connection.execute(sa.text(f"ALTER TABLE evaluations ADD COLUMN {name} TEXT"))

    return add


def _add_drivers(connection: sa.Connection) -> None:
    """Who drives a search."""
    drivers.create(connection, checkfirst=True)


def _add_origin_index(connection: sa.Connection) -> None:
    """Seeds and baselines are found without going through all candidates."""
    if ORIGIN_INDEX not in {index["name"] for index in sa.inspect(connection).get_indexes("candidates")}:
        _index(candidates, ORIGIN_INDEX).create(connection)


def _order_evaluations(connection: sa.Connection) -> None:
    """A search's evaluations are found in their order, and new ones without going through the others."""
    index = _index(evaluations, EVALUATION_INDEX)
    index.drop(connection, checkfirst=True)
    index.create(connection)


def _index(table: Table, name: str) -> Index:
    return next(index for index in table.indexes if index.name == name)


def _add_losses_and_crews(connection: sa.Connection) -> None:
    """What died, and who works."""
    losses.create(connection, checkfirst=True)
    crews.create(connection, checkfirst=True)


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (  # from version 1 to 2, from 2 to 3, ...
    _add_columns("stopped"),
    _add_columns("truncated", "over_limits"),
    _add_drivers,
    _add_origin_index,
    _add_losses_and_crews,
    _order_evaluations,
)
