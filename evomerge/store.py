"""The record of searches: append-only candidates and evaluations in a SQL database.

Only the driver of a search writes, holding the search's lock. Every evaluation is committed with its scores in
one transaction. Asks and tells of the optimizer are numbered in one sequence, so that a search continues by
repeating them in that order.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import sqlalchemy as sa

from evaluators.evaluation import Cost, Evaluation, Failure, FailureKind, Floats, Outcome, Stop
from evomerge.errors import BadSearch, SearchBusy
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
from evomerge.schema import candidates, evaluations, explain_database, masked, open_engine, scores, searches
from search_spaces.canonical import canonical_json
from search_spaces.genes import Genome
from search_spaces.mosaic import read_genome
from search_spaces.recipe import Recipe

MOST_PARAMETERS = 500  # of one statement; databases limit them


class Store:
    """All searches of one database."""

    def __init__(self, storage: str, *, create: bool = False) -> None:
        """``storage``: SQLAlchemy URL; with ``create`` the database is made if it is not there.

        Raises:
            BadSearch: it cannot be opened; the text says why and what to do.
        """
        self.storage = storage
        self._engine = open_engine(storage, create=create)

    def searches(self) -> list[SearchRow]:
        """Return all searches, the oldest first."""
        with self.reading() as connection:
            rows = connection.execute(sa.select(searches).order_by(searches.c.id)).all()
        return [_search_row(row) for row in rows]

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
        with self.reading() as connection:
            row = connection.execute(sa.select(searches).where(searches.c.name == name)).first()
        return SearchRecord(self, _search_row(row)) if row else None

    def create(self, name: str, *, file: dict[str, Any], plan: dict[str, Any]) -> SearchRecord:
        """Add a search."""
        with self.writing() as connection:
            connection.execute(
                searches.insert().values(
                    name=name, file=canonical_json(file), plan=canonical_json(plan), created=time.time(), seconds=0.0
                )
            )
        return self.search(name)

    @contextmanager
    def driving(self, name: str) -> Iterator[None]:
        """Hold the search's lock: at most one driver, released by the system when the process ends, however it ends.

        Raises:
            SearchBusy: another driver holds it.
        """
        database = sa.make_url(self.storage).database
        if database is None:
            raise BadSearch(f"storage {masked(self.storage)}: a search needs a database file")
        path = Path(f"{database}.{name}.lock")
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                raise SearchBusy(f"search {name!r} is being run by another process ({owner}); it goes on") from None
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            yield

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction; database errors come out as BadSearch with the remedy."""
        with self._explained(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to read from; database errors come out as BadSearch with the remedy."""
        with self._explained(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise BadSearch(f"storage {masked(self.storage)}: {explain_database(error)}") from None


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
        """Keep the search file of the latest run: its budget, cluster and storage may have changed."""
        with self.store.writing() as connection:
            query = searches.update().where(searches.c.id == self.row.id)
            connection.execute(query.values(file=canonical_json(file)))

    def add_seconds(self, seconds: float) -> None:
        """Add to the wall time that drivers have spent on the search."""
        with self.store.writing() as connection:
            query = searches.update().where(searches.c.id == self.row.id)
            connection.execute(query.values(seconds=searches.c.seconds + seconds))

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
        with self.store.writing() as connection:
            key = connection.execute(candidates.insert(), row).inserted_primary_key
        assert key is not None
        return _candidate_record({**row, "id": key[0]}, {})

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
            "failure_message": failure.message if failure else None,
            "stopped": _stopped_json(outcome),
            "cost": json.dumps(asdict(outcome.cost)),
            "created": time.time(),
        }
        with self.store.writing() as connection:
            key = connection.execute(evaluations.insert(), row).inserted_primary_key
            assert key is not None
            rows = _score_rows(key[0], outcome) if isinstance(outcome, Evaluation) else []
            if rows:
                connection.execute(scores.insert(), rows)
        record = _evaluation_record({**row, "id": key[0]}, {r["objective"]: _measured(r) for r in rows})
        return _with_evaluation(candidate, record)

    def candidates(self) -> list[CandidateRecord]:
        """Return all candidates in order of their numbers, with the latest evaluation per split."""
        mine = candidates.c.search_id == self.row.id
        with self.store.reading() as connection:
            rows = connection.execute(sa.select(candidates).where(mine).order_by(candidates.c.number)).mappings().all()
            found = self._evaluations(connection, evaluations.c.search_id == self.row.id)
        return [_candidate_record(row, found.get(row["id"], {})) for row in rows]

    def some_candidates(self, numbers: Sequence[int], *, until: int) -> list[CandidateRecord]:
        """Return the candidates with ``numbers``, in any order, as they were after evaluation ``until`` (its id)."""
        found = []
        for start in range(0, len(numbers), MOST_PARAMETERS):
            chosen = candidates.c.number.in_(numbers[start : start + MOST_PARAMETERS])
            with self.store.reading() as connection:
                query = sa.select(candidates).where(candidates.c.search_id == self.row.id, chosen)
                rows = connection.execute(query).mappings().all()
                known = evaluations.c.candidate_id.in_([row["id"] for row in rows]) & (evaluations.c.id <= until)
                evaluated = self._evaluations(connection, known)
            found += [_candidate_record(row, evaluated.get(row["id"], {})) for row in rows]
        return found

    def document_scores(self, evaluation: EvaluationRecord, objective: str) -> Floats:
        """Return (documents,) float64 scores of one objective of one evaluation, in the order of the documents."""
        mine = (scores.c.evaluation_id == evaluation.id) & (scores.c.objective == objective)
        query = sa.select(scores.c.documents).where(mine)
        with self.store.reading() as connection:
            data = connection.execute(query).scalar()
        if data is None:
            raise KeyError(f"evaluation {evaluation.id} has no objective {objective!r}")
        return unpack_scores(data)

    def some_document_scores(self, evaluation_ids: Sequence[int]) -> dict[int, dict[str, Floats]]:
        """Return what `document_scores` does, by evaluation and objective; an evaluation that failed is left out."""
        found: dict[int, dict[str, Floats]] = {}
        for start in range(0, len(evaluation_ids), MOST_PARAMETERS):
            chosen = scores.c.evaluation_id.in_(evaluation_ids[start : start + MOST_PARAMETERS])
            query = sa.select(scores.c.evaluation_id, scores.c.objective, scores.c.documents).where(chosen)
            with self.store.reading() as connection:
                for key, objective, data in connection.execute(query):
                    found.setdefault(key, {})[objective] = unpack_scores(data)
        return found

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


def _search_row(row: Any) -> SearchRow:
    return SearchRow(
        id=row.id,
        name=row.name,
        file=json.loads(row.file),
        plan=json.loads(row.plan),
        created=row.created,
        seconds=row.seconds,
    )


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
    )


def _stop(fields: dict[str, Any]) -> Stop:
    return Stop(**fields | {"par": tuple(fields["par"])})


def _stopped_json(outcome: Outcome) -> str | None:
    stopped = outcome.stopped if isinstance(outcome, Evaluation) else None
    return json.dumps(asdict(stopped)) if stopped else None


def _with_evaluation(candidate: CandidateRecord, record: EvaluationRecord) -> CandidateRecord:
    return replace(candidate, evaluations={**candidate.evaluations, record.split: record})


def _score_rows(evaluation_id: int, evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {
            "evaluation_id": evaluation_id,
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
