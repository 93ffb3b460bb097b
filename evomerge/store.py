"""The record of searches: append-only candidates and evaluations in a SQL database.

Only the driver of a search writes, holding the search's lock. Every evaluation is committed with its scores in
one transaction. Asks and tells of the optimizer are numbered in one sequence, so that a search continues by
repeating them in that order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import sqlalchemy as sa

from evaluators.evaluation import Cost, Evaluation, Failure, FailureKind, Floats, Outcome, Stop
from evomerge.database import Database
from evomerge.driver_lock import Driver
from evomerge.errors import BadSearch
from evomerge.foreign import a_row
from evomerge.records import (
    CandidateRecord,
    EvaluationRecord,
    Measured,
    Origin,
    SearchRow,
    Split,
    pack_scores,
    unpack_scores,
)
from evomerge.schema import candidates, evaluations, scores, searches
from evomerge.storage_url import masked
from search_spaces.canonical import canonical_json
from search_spaces.genes import Genome
from search_spaces.mosaic import read_genome
from search_spaces.recipe import Recipe

MOST_PARAMETERS = 500  # of one statement; databases limit them


class Store:
    """All searches of one database."""

    def __init__(self, storage: str, *, create: bool = False) -> None:
        """``storage``: see `evomerge.storage_url`; with ``create`` the tables are made if they are not there.

        Raises:
            BadSearch: it cannot be opened; the text says why and what to do.
        """
        self.storage = storage
        self.database = Database(storage, create=create)

    def searches(self) -> list[SearchRow]:
        """Return all searches, the oldest first."""
        query = sa.select(searches).order_by(searches.c.id)
        return [_search_row(row) for row in self.database.read(lambda c: c.execute(query).all())]

    def names(self) -> list[str]:
        """Return the names of all searches, the oldest first."""
        query = sa.select(searches.c.name).order_by(searches.c.id)
        return list(self.database.read(lambda c: c.execute(query).scalars().all()))

    def search(self, name: str) -> SearchRecord:
        """Return the search called ``name``.

        Raises:
            BadSearch: there is none; the names that exist are listed.
        """
        found = self.find(name)
        if found is None:
            known = ", ".join(row.name for row in self.searches()) or "none"
            raise BadSearch(f"no search {name!r} in {masked(self.storage)} (there: {known})")
        return found

    def find(self, name: str) -> SearchRecord | None:
        """Return the search called ``name``, or None."""
        query = sa.select(searches).where(searches.c.name == name)
        row = self.database.read(lambda c: c.execute(query).first())
        return SearchRecord(self, _search_row(row)) if row else None

    def create(self, name: str, *, file: dict[str, Any], plan: dict[str, Any]) -> SearchRecord:
        """Add a search."""
        row = {"name": name, "file": _file_json(file), "plan": canonical_json(plan), "created": time.time()}
        mine = (searches.c.name == name) & (searches.c.created == row["created"])
        self.database.write(
            lambda c: _inserted(c, searches, row | {"seconds": 0.0}),
            done=lambda c: c.execute(sa.select(searches.c.id).where(mine)).scalar(),
        )
        return self.search(name)

    def driving(self, name: str) -> AbstractContextManager[None]:
        """Hold the search's lock: at most one driver, released by the system when the process ends, however it ends.

        Raises:
            SearchBusy: another driver holds it.
        """
        return self.database.driving(name)

    def driver(self, name: str) -> Driver | None:
        """Return who drives the search now, or None: then running it again continues it."""
        return self.database.driver(name)

    def close(self) -> None:
        """Close the connections."""
        self.database.close()


@dataclass(frozen=True)
class SearchRecord:
    """One search of a store."""

    store: Store
    row: SearchRow

    @property
    def name(self) -> str:
        """The search's name."""
        return self.row.name

    def update_file(self, file: dict[str, Any]) -> None:
        """Keep the search file of the latest run: its budget, cluster, logging and storage may have changed."""
        self._update(file=_file_json(file))

    def set_seconds(self, seconds: float) -> None:
        """Keep the wall time that drivers have spent on the search, in all."""
        self._update(seconds=seconds)

    def _update(self, **values: Any) -> None:
        query = searches.update().where(searches.c.id == self.row.id).values(**values)
        self.store.database.write(lambda c: c.execute(query), done=lambda _: None)  # twice does the same as once

    def add_candidate(
        self,
        number: int,
        recipe: Recipe,
        *,
        origin: Origin,
        name: str | None = None,
        genome: Genome | None = None,
        asked_at: int | None = None,
        parents: Sequence[int] = (),
    ) -> CandidateRecord:
        """Record a candidate before it is dispatched; ``parents``: numbers of the candidates that it was made of."""
        row = {
            "search_id": self.row.id,
            "number": number,
            "origin": origin,
            "name": name,
            "genome": genome.to_bytes() if genome else None,
            "recipe": recipe.to_json(),
            "recipe_digest": recipe.digest,
            "parents": json.dumps(list(parents)),
            "asked_at": asked_at,
            "created": time.time(),
        }
        mine = (candidates.c.search_id == self.row.id) & (candidates.c.number == number)
        key = self.store.database.write(
            lambda c: _inserted(c, candidates, row),
            done=lambda c: c.execute(sa.select(candidates.c.id).where(mine)).scalar(),
        )
        return _candidate_record({**row, "id": key}, {})

    def add_evaluation(
        self,
        candidate: CandidateRecord,
        split: Split,
        outcome: Outcome,
        *,
        documents_digest: str,
        told_at: int | None = None,
        answered_from: int | None = None,
    ) -> CandidateRecord:
        """Commit an evaluation with its scores in one transaction; return the candidate with it."""
        failure = outcome if isinstance(outcome, Failure) else None
        row = {
            "candidate_id": candidate.id,
            "search_id": self.row.id,
            "split": split,
            "documents_digest": documents_digest,
            "told_at": told_at,
            "answered_from": answered_from,
            "failure_kind": failure.kind.value if failure else None,
            "failure_message": _storable(failure.message) if failure else None,
            **_remarks_json(outcome),
            "cost": json.dumps(asdict(outcome.cost)),
            "created": time.time(),
        }
        rows = _score_rows(outcome) if isinstance(outcome, Evaluation) else []
        same = [evaluations.c[name] == row[name] for name in ("candidate_id", "split", "created")]
        key = self.store.database.write(
            lambda c: _insert_evaluation(c, row, rows),
            done=lambda c: c.execute(sa.select(evaluations.c.id).where(*same)).scalar(),
        )
        record = _evaluation_record({**row, "id": key}, {r["objective"]: _measured(r) for r in rows})
        return _with_evaluation(candidate, record)

    def candidates(self) -> list[CandidateRecord]:
        """Return all candidates in order of their numbers, with the latest evaluation per split."""
        query = sa.select(candidates).where(candidates.c.search_id == self.row.id).order_by(candidates.c.number)

        def read(connection: sa.Connection) -> list[CandidateRecord]:
            rows = connection.execute(query).mappings().all()
            found = self._evaluations(connection, evaluations.c.search_id == self.row.id)
            return [_candidate_record(row, found.get(row["id"], {})) for row in rows]

        return self.store.database.read(read)

    def some_candidates(self, numbers: Sequence[int], *, until: int) -> list[CandidateRecord]:
        """Return the candidates with ``numbers``, in any order, as they were after evaluation ``until`` (its id)."""

        def read(connection: sa.Connection, chosen: Sequence[int]) -> list[CandidateRecord]:
            mine = (candidates.c.search_id == self.row.id) & candidates.c.number.in_(chosen)
            rows = connection.execute(sa.select(candidates).where(mine)).mappings().all()
            known = evaluations.c.candidate_id.in_([row["id"] for row in rows]) & (evaluations.c.id <= until)
            evaluated = self._evaluations(connection, known)
            return [_candidate_record(row, evaluated.get(row["id"], {})) for row in rows]

        found = []
        for chosen in _statements(numbers):
            found += self.store.database.read(partial(read, chosen=chosen))
        return found

    def recipe_json(self, number: int) -> str:
        """Return the recipe of the candidate with ``number``, canonical JSON."""
        mine = (candidates.c.search_id == self.row.id) & (candidates.c.number == number)
        query = sa.select(candidates.c.recipe).where(mine)
        return cast(str, self.store.database.read(lambda c: c.execute(query).scalar_one()))

    def document_scores(self, evaluation: EvaluationRecord, objective: str) -> Floats:
        """Return (documents,) float64 scores of one objective of one evaluation, in the order of the documents."""
        mine = (scores.c.evaluation_id == evaluation.id) & (scores.c.objective == objective)
        query = sa.select(scores.c.documents).where(mine)
        data = self.store.database.read(lambda c: c.execute(query).scalar())
        if data is None:
            raise KeyError(f"evaluation {evaluation.id} has no objective {objective!r}")
        return unpack_scores(data)

    def some_document_scores(self, evaluation_ids: Sequence[int]) -> dict[int, dict[str, Floats]]:
        """Return what `document_scores` does, by evaluation and objective; an evaluation that failed is left out."""
        columns = (scores.c.evaluation_id, scores.c.objective, scores.c.documents)
        found: dict[int, dict[str, Floats]] = {}
        for chosen in _statements(evaluation_ids):
            rows = self._all(sa.select(*columns).where(scores.c.evaluation_id.in_(chosen)))
            for key, objective, data in rows:
                found.setdefault(key, {})[objective] = unpack_scores(data)
        return found

    def _all(self, query: sa.Select[Any]) -> Sequence[Any]:
        return self.store.database.read(lambda connection: connection.execute(query).all())

    def _evaluations(
        self, connection: sa.Connection, mine: sa.ColumnElement[bool]
    ) -> dict[int, dict[Split, EvaluationRecord]]:
        # Evaluations before scores: a driver may commit both in between, and an evaluation must not lack its scores.
        rows = connection.execute(sa.select(evaluations).where(mine).order_by(evaluations.c.id)).mappings().all()
        columns = [c for c in scores.c if c.name != "documents"]
        joined = scores.join(evaluations, scores.c.evaluation_id == evaluations.c.id)
        measured: dict[int, dict[str, Measured]] = {}
        for row in connection.execute(sa.select(*columns).select_from(joined).where(mine)).mappings():
            measured.setdefault(row["evaluation_id"], {})[row["objective"]] = _measured(row)
        found: dict[int, dict[Split, EvaluationRecord]] = {}
        for row in rows:
            record = _evaluation_record(row, measured.get(row["id"], {}))
            found.setdefault(row["candidate_id"], {})[record.split] = record
        return found


def _statements(keys: Sequence[int]) -> Iterator[Sequence[int]]:
    """``keys`` in parts that one statement can hold."""
    return (keys[start : start + MOST_PARAMETERS] for start in range(0, len(keys), MOST_PARAMETERS))


def _file_json(file: dict[str, Any]) -> str:
    """The search file, without the password that its storage may hold."""
    hidden = {"storage": masked(file["storage"])} if "storage" in file else {}
    return canonical_json(file | hidden)


def _inserted(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> int:
    key = connection.execute(table.insert(), row).inserted_primary_key
    assert key is not None
    return cast(int, key[0])


def _insert_evaluation(connection: sa.Connection, row: dict[str, Any], rows: list[dict[str, Any]]) -> int:
    key = _inserted(connection, evaluations, row)
    if rows:
        connection.execute(scores.insert(), [{"evaluation_id": key, **each} for each in rows])
    return key


def _storable(text: str) -> str:
    """Return ``text`` without what a database refuses: NUL, and halves of characters."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


@a_row()
def _search_row(row: Any) -> SearchRow:
    return SearchRow(
        id=row.id,
        name=row.name,
        file=json.loads(row.file),
        plan=json.loads(row.plan),
        created=row.created,
        seconds=row.seconds,
    )


@a_row()
def _candidate_record(row: Any, found: dict[Split, EvaluationRecord]) -> CandidateRecord:
    return CandidateRecord(
        id=row["id"],
        number=row["number"],
        origin=cast(Origin, row["origin"]),
        name=row["name"],
        genome=read_genome(row["genome"]) if row["genome"] else None,
        recipe_json=row["recipe"],
        recipe_digest=row["recipe_digest"],
        parents=tuple(json.loads(row["parents"])),
        asked_at=row["asked_at"],
        created=row["created"],
        evaluations=found,
    )


@a_row()
def _evaluation_record(row: Any, measured: dict[str, Measured]) -> EvaluationRecord:
    cost = Cost(**json.loads(row["cost"]))
    kind = row["failure_kind"]
    return EvaluationRecord(
        id=row["id"],
        split=cast(Split, row["split"]),
        documents_digest=row["documents_digest"],
        scores=measured,
        failure=Failure(FailureKind(kind), row["failure_message"] or "", cost) if kind else None,
        cost=cost,
        told_at=row["told_at"],
        answered_from=row["answered_from"],
        created=row["created"],
        stopped=_stop(json.loads(row["stopped"])) if row["stopped"] else None,
        truncated=json.loads(row["truncated"] or "{}"),
        over_limits=json.loads(row["over_limits"] or "{}"),
    )


def _stop(fields: dict[str, Any]) -> Stop:
    return Stop(**fields | {"par": tuple(fields["par"])})


def _remarks_json(outcome: Outcome) -> dict[str, str | None]:
    """What is to be known of the scores, by column; None where there is nothing."""
    remarks: dict[str, Any] = dict.fromkeys(("stopped", "truncated", "over_limits"))
    if isinstance(outcome, Evaluation):
        remarks["stopped"] = asdict(outcome.stopped) if outcome.stopped else None
        remarks["truncated"], remarks["over_limits"] = dict(outcome.truncated), dict(outcome.over_limits)
    return {name: json.dumps(value) if value else None for name, value in remarks.items()}


def _with_evaluation(candidate: CandidateRecord, record: EvaluationRecord) -> CandidateRecord:
    return replace(candidate, evaluations={**candidate.evaluations, record.split: record})


def _score_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {
            "objective": name,
            "value": score.value,
            "standard_error": score.standard_error,
            "tie_break": evaluation.tie_breaks.get(name),
            "documents": pack_scores(np.asarray(score.documents)),
        }
        for name, score in evaluation.scores.items()
    ]


def _measured(row: Any) -> Measured:
    return Measured(value=row["value"], standard_error=row["standard_error"], tie_break=row["tie_break"])
