"""The candidates of a search in columns: read in bulk, and brought up to date by reading only what is new.

A record of 100,000 candidates is a second of numbers and half a gigabyte of recipes, genomes and per-document scores.
`Columns` reads the numbers at once and everything else when it is asked for: it is a sequence of `CandidateRecord`,
each loaded on access.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from evaluators.evaluation import Cost, FailureKind, Floats
from evomerge.foreign import a_row
from evomerge.records import CandidateRecord, Origin, Split
from evomerge.schema import candidates, evaluations, scores
from evomerge.store import SearchRecord

Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

SPLITS: tuple[Split, ...] = ("search", "validation", "test")
FAILURES = tuple(kind.value for kind in FailureKind)
COSTS = tuple(field.name for field in fields(Cost))
MOST_JOINED = 32  # tables of one query; SQLite takes 64
CHUNK = 1000  # records loaded at once when all are gone through
NONE = -1  # stands for SQL's NULL in columns of whole numbers


class Evaluations(NamedTuple):
    """The evaluations of a search, one row each, in the order in which they were recorded.

    Attributes:
        ids: (evaluations,) int64, ascending.
        candidates: (evaluations,) int64 numbers of the candidates.
        splits: (evaluations,) int64 positions in `SPLITS`.
        told_at: (evaluations,) int64 place in the sequence of asks and tells, or `NONE`.
        answered_from: (evaluations,) int64 id of the evaluation of an equal recipe, or `NONE` for a new evaluation.
        failures: (evaluations,) int64 positions in `FAILURES`, or `NONE`.
        stopped: (evaluations,) bool, whether racing ended it early: its values are estimates.
        created: (evaluations,) float64 seconds since the epoch.
        values: (evaluations, objectives) float64 in the metrics' own directions; NaN after a failure.
        errors: (evaluations, objectives) float64 standard errors; NaN where none is known.
    """

    ids: Ints
    candidates: Ints
    splits: Ints
    told_at: Ints
    answered_from: Ints
    failures: Ints
    stopped: Flags
    created: Floats
    values: Floats
    errors: Floats

    @property
    def fresh(self) -> Flags:
        """(evaluations,) whether each was new, not an answer from the record."""
        return np.asarray(self.answered_from == NONE)

    def of(self, split: Split) -> Ints:
        """Return the rows of the evaluations on ``split``."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    @property
    def told(self) -> Ints:
        """Rows of the evaluations that the optimizer was told of, in that order."""
        rows = np.flatnonzero(self.told_at != NONE)
        return rows[np.argsort(self.told_at[rows], kind="stable")]


class Columns(Sequence[CandidateRecord]):
    """The candidates of one search; position and number are the same. A value: `newer` returns another one."""

    def __init__(
        self,
        record: SearchRecord,
        objectives: tuple[str, ...],
        ids: Ints,
        special: dict[int, tuple[Origin, str | None]],
        known: Evaluations,
    ) -> None:
        """
        Args:
            objectives: names, in the order of the columns of values.
            ids: (candidates,) int64 keys in the database by number.
            special: origin and name by number, of all that no optimizer proposed.
            known: the evaluations.
        """
        self.record = record
        self.objectives = objectives
        self.special = special
        self.evaluations = known
        self._ids = ids
        self._loaded: dict[int, CandidateRecord] = {}
        self._costs = np.zeros((0, len(COSTS)))
        self._created = np.zeros(0)

    @classmethod
    def read(cls, record: SearchRecord, objectives: tuple[str, ...]) -> Columns:
        """Read all candidates of ``record``."""
        return cls(record, objectives, np.zeros(0, np.int64), {}, _nothing(len(objectives))).newer()

    def newer(self) -> Columns:
        """Return what the record holds now: this object if nothing is new, else one to which only that was added."""
        # Evaluations before candidates: whoever was evaluated is then among them. Evaluations before their scores: they
        # are committed together, so none lacks its scores.
        with without_collecting():
            fresh = self._read_evaluations()
            ids, special = self._read_candidates()
        if not len(ids) and not len(fresh.ids):
            return self
        ids = np.concatenate([self._ids, ids])
        order = np.argsort(ids)
        fresh = fresh._replace(candidates=order[np.searchsorted(ids, fresh.candidates, sorter=order)])
        pairs = zip(self.evaluations, fresh, strict=True)
        known = Evaluations(*(np.concatenate(pair) for pair in pairs)) if len(fresh.ids) else self.evaluations
        columns = Columns(self.record, self.objectives, ids, self.special | special, known)
        columns._costs, columns._created = self._costs, self._created
        return columns

    # ---------------------------------------------------------------- a sequence of records

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, number: int) -> CandidateRecord: ...

    @overload
    def __getitem__(self, number: slice) -> list[CandidateRecord]: ...

    def __getitem__(self, number: int | slice) -> CandidateRecord | list[CandidateRecord]:
        if isinstance(number, slice):
            return self.records(range(len(self))[number])
        return self.records([range(len(self))[number]])[0]

    def __iter__(self) -> Iterator[CandidateRecord]:
        return self.each(range(len(self)))

    def each(self, numbers: Sequence[int]) -> Iterator[CandidateRecord]:
        """Yield the candidates with ``numbers``, in that order; none is kept, so any number of them fits."""
        for start in range(0, len(numbers), CHUNK):
            wanted = numbers[start : start + CHUNK]
            loaded = self._load(wanted)
            yield from (loaded[number] for number in wanted)

    def records(self, numbers: Iterable[int]) -> list[CandidateRecord]:
        """Return the candidates with ``numbers``, in that order; they are kept for the next time."""
        wanted = [int(number) for number in numbers]
        self._loaded |= self._load([n for n in dict.fromkeys(wanted) if n not in self._loaded])
        return [self._loaded[number] for number in wanted]

    def _load(self, numbers: Sequence[int]) -> dict[int, CandidateRecord]:
        until = int(self.evaluations.ids[-1]) if len(self.evaluations.ids) else 0
        return {c.number: c for c in self.record.some_candidates(numbers, until=until)}

    def document_scores(self, rows: Sequence[int]) -> Iterator[dict[str, Floats]]:
        """Yield per-document scores by objective for each of ``rows`` of `evaluations`; nothing for a failure."""
        for start in range(0, len(rows), CHUNK):
            ids = self.evaluations.ids[list(rows[start : start + CHUNK])].tolist()
            found = self.record.some_document_scores(ids)
            yield from (found.get(key, {}) for key in ids)

    # ---------------------------------------------------------------- columns

    @cached_property
    def values(self) -> dict[Split, Floats]:
        """(candidates, objectives) values by split, measured on all its documents, in the metrics' own directions.

        NaN without such a measurement: before it, after a failure, and where racing left only estimates.
        """
        return {split: self._latest_values(split) for split in SPLITS}

    def latest(self, split: Split) -> Ints:
        """Return (candidates,) rows of the latest evaluation on ``split`` among `evaluations`, `NONE` without one."""
        rows = self.evaluations.of(split)
        latest = np.full(len(self), NONE, dtype=np.int64)
        latest[self.evaluations.candidates[rows]] = rows  # of several the last one stays
        return latest

    def measured(self, split: Split) -> Ints:
        """Return the numbers of the candidates that were measured on all documents of ``split``."""
        return np.flatnonzero(np.isfinite(self.values[split]).all(axis=1))

    def numbers_of(self, origin: Origin) -> list[int]:
        """Return the numbers of the candidates of ``origin``, which is not `optimizer`."""
        return sorted(number for number, (mine, _) in self.special.items() if mine == origin)

    def of_origin(self, origin: Origin) -> list[CandidateRecord]:
        """Return the candidates of ``origin``, which is not `optimizer`."""
        return self.records(self.numbers_of(origin))

    def label(self, number: int) -> str:
        """Return the name of a candidate, or its number where there is none."""
        _, name = self.special.get(number, ("optimizer", None))
        return name or f"candidate {number}"

    def message(self, row: int) -> str:
        """Return what was said of a failed evaluation, by its row."""
        query = sa.select(evaluations.c.failure_message).where(evaluations.c.id == int(self.evaluations.ids[row]))
        return str(self._rows(query)[0][0] or "")

    @property
    def costs(self) -> Floats:
        """(evaluations, `COSTS`) float64, read when first asked for."""
        missing = self.evaluations.ids[len(self._costs) :]
        if len(missing):
            query = sa.select(evaluations.c.cost).where(self._new_evaluations(missing[0] - 1))
            query = query.where(evaluations.c.id <= int(missing[-1])).order_by(evaluations.c.id)
            # One text is read in a third of the time of many.
            with a_row():
                each = json.loads(f"[{','.join(text for (text,) in self._rows(query))}]")
                rows = np.array([[cost.get(name, 0.0) for name in COSTS] for cost in each], dtype=np.float64)
            self._costs = np.concatenate([self._costs, rows.reshape(-1, len(COSTS))])
        return self._costs

    @property
    def created(self) -> Floats:
        """(candidates,) float64 seconds since the epoch, read when first asked for."""
        count = len(self._created)
        if count < len(self):
            query = sa.select(candidates.c.created).where(candidates.c.search_id == self.record.row.id)
            query = query.where(candidates.c.number >= count, candidates.c.number < len(self))
            rows = self._rows(query.order_by(candidates.c.number))
            self._created = np.concatenate([self._created, [created for (created,) in rows]])
        return self._created

    def _latest_values(self, split: Split) -> Floats:
        latest, known = self.latest(split), self.evaluations
        values = np.full((len(self), len(self.objectives)), np.nan)
        there = latest != NONE
        there[there] = ~known.stopped[latest[there]]
        values[there] = known.values[latest[there]]
        return values

    # ---------------------------------------------------------------- reading

    def _rows(self, query: sa.Select[Any]) -> Sequence[Any]:
        def read(connection: sa.Connection) -> Sequence[Any]:
            cursor = connection.execute(query).cursor  # its plain tuples take half the time of SQLAlchemy's rows
            return cursor.fetchall() if cursor is not None else []

        return self.record.store.database.read(read)

    def _new_evaluations(self, after: int) -> sa.ColumnElement[bool]:
        return (evaluations.c.search_id == self.record.row.id) & (evaluations.c.id > int(after))

    def _read_candidates(self) -> tuple[Ints, dict[int, tuple[Origin, str | None]]]:
        """Keys of the candidates that are new, by number, and what is special among them."""
        count = len(self._ids)
        new = (candidates.c.search_id == self.record.row.id) & (candidates.c.number >= count)
        keys = self._rows(sa.select(candidates.c.id).where(new).order_by(candidates.c.number))
        # By origin alone, for which there is an index: of all candidates their recipes would have to be read over.
        mine = (candidates.c.search_id == self.record.row.id) & candidates.c.origin.in_(("seed", "baseline"))
        columns = (candidates.c.number, candidates.c.origin, candidates.c.name)
        special = self._rows(sa.select(*columns).where(mine)) if keys else []
        last = count + len(keys)
        named = {number: (cast(Origin, origin), name) for number, origin, name in special if count <= number < last}
        return np.array([key for (key,) in keys], dtype=np.int64), named

    def _read_evaluations(self) -> Evaluations:
        """The evaluations that are new; `candidates` are keys of the database still."""
        last = int(self.evaluations.ids[-1]) if len(self.evaluations.ids) else 0
        c = evaluations.c
        wanted = (c.id, c.candidate_id, c.split, c.told_at, c.answered_from, c.failure_kind, c.stopped.is_not(None))
        rows = self._rows(sa.select(*wanted, c.created).where(self._new_evaluations(last)).order_by(c.id))
        if not rows:
            return _nothing(len(self.objectives))
        ids, keys, splits, told, answers, kinds, stopped, created = zip(*rows, strict=True)
        split_of = {split: position for position, split in enumerate(SPLITS)}
        kind_of = {None: NONE} | {kind: position for position, kind in enumerate(FAILURES)}
        known = np.array(ids, dtype=np.int64)
        values, errors = self._read_scores(last, known)
        return Evaluations(
            ids=known,
            candidates=np.array(keys, dtype=np.int64),
            splits=np.array([split_of[split] for split in splits], dtype=np.int64),
            told_at=_whole(told),
            answered_from=_whole(answers),
            failures=np.array([kind_of.get(kind, kind_of["exception"]) for kind in kinds], dtype=np.int64),
            stopped=np.array(stopped, dtype=bool),
            created=np.array(created, dtype=np.float64),
            values=values,
            errors=errors,
        )

    def _read_scores(self, last: int, ids: Ints) -> tuple[Floats, Floats]:
        """Values and standard errors of the evaluations ``ids``, all after ``last``; one wide row each."""
        mine = self._new_evaluations(last) & (evaluations.c.id <= int(ids[-1]))
        parts = [np.zeros((len(ids), 0))]
        for start in range(0, len(self.objectives), MOST_JOINED):
            joined: sa.FromClause = evaluations
            wanted: list[sa.ColumnElement[Any]] = []
            for number, name in enumerate(self.objectives[start : start + MOST_JOINED]):
                each = scores.alias(f"s{number}")
                joined = joined.outerjoin(each, (each.c.evaluation_id == evaluations.c.id) & (each.c.objective == name))
                wanted += [each.c.value, each.c.standard_error]
            rows = self._rows(sa.select(*wanted).select_from(joined).where(mine).order_by(evaluations.c.id))
            parts.append(np.array(rows, dtype=np.float64).reshape(len(ids), -1))  # None becomes NaN
        wide = np.concatenate(parts, axis=1)
        return np.ascontiguousarray(wide[:, 0::2]), np.ascontiguousarray(wide[:, 1::2])


@contextmanager
def without_collecting() -> Iterator[None]:
    """Let the garbage collector rest: it goes through hundreds of thousands of new rows again and again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _nothing(objectives: int) -> Evaluations:
    whole, real = np.zeros(0, np.int64), np.zeros((0, objectives))
    return Evaluations(whole, whole, whole, whole, whole, whole, np.zeros(0, bool), np.zeros(0), real, real)


def _whole(values: Sequence[int | None]) -> Ints:
    return np.array([NONE if value is None else value for value in values], dtype=np.int64)
