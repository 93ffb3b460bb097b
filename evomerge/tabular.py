"""All candidates of a search and their document scores as tables for other programs, in CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from evaluators.evaluation import Documents, Floats
from evomerge.atomic import writing_folder
from evomerge.columns import CHUNK, COSTS, NONE, SPLITS, Ints
from evomerge.minibatches import minibatches
from evomerge.records import CandidateRecord, EvaluationRecord, Split
from evomerge.results import Results
from evomerge.shares import Progress
from evomerge.targets import Place, local

_ABOUT = {
    "number": pa.int64(),
    "name": pa.string(),
    "origin": pa.string(),
    "state": pa.string(),
    "front": pa.bool_(),
    "winner": pa.bool_(),
    "parents": pa.string(),  # JSON, since CSV has no lists
    "recipe_digest": pa.string(),
    "created": pa.timestamp("ms", tz="UTC"),
}
_DOCUMENTS = pa.schema(
    {
        "candidate": pa.int64(),
        "split": pa.dictionary(pa.int32(), pa.string()),
        "objective": pa.dictionary(pa.int32(), pa.string()),
        "position": pa.int64(),
        "document": pa.int64(),
        "score": pa.float64(),
    }
)


def write_tables(results: Results, to: Place, kind: str, *, progress: Progress | None = None) -> None:
    """Write the folder ``to``, a path or an fsspec URL, with two tables in one of `evomerge.export.TABLES`.

    `candidates` has one row a candidate: what it is, ``gene:NAME``, and for each split ``SPLIT:OBJECTIVE``,
    ``SPLIT:OBJECTIVE:se`` (standard error), ``SPLIT:failure``, ``SPLIT:message`` and the cost. `documents` has one row
    for each document of the latest evaluation on each split: its position among those evaluated, its number in the
    task (empty where the objective is a group's) and its score. Scores are in the metrics' own directions; those of
    candidates whose state is `stopped` are estimates from the documents that they saw.

    Memory does not grow with the number of candidates. ``progress`` is called with candidates written and in total.

    Raises:
        UserMistake: ``to`` exists and is not an empty folder, or the disk is full; nothing is left behind.
    """
    with local(to) as place, writing_folder(place) as folder:
        _write(folder / f"candidates.{kind}", _candidate_schema(results), _candidate_batches(results, progress))
        _write(folder / f"documents.{kind}", _DOCUMENTS, _document_batches(results))


class _Writer(Protocol):
    def write_batch(self, batch: pa.RecordBatch) -> None: ...

    def close(self) -> None: ...


def _write(file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    make = pa.csv.CSVWriter if file.suffix == ".csv" else pa.parquet.ParquetWriter
    writer: _Writer = make(str(file), schema)
    try:
        for batch in batches:
            writer.write_batch(batch)
    finally:
        writer.close()


def _candidate_schema(results: Results) -> pa.Schema:
    columns = dict(_ABOUT)
    columns |= {f"gene:{name}": pa.float64() for name in results.record.row.plan["genes"]}
    for split in SPLITS:
        for name in results.chooser.names:
            columns |= {f"{split}:{name}": pa.float64(), f"{split}:{name}:se": pa.float64()}
        columns |= {f"{split}:failure": pa.string(), f"{split}:message": pa.string()}
        columns |= {f"{split}:{cost}": pa.float64() for cost in COSTS}
    return pa.schema(columns)


def _candidate_batches(results: Results, progress: Progress | None) -> Iterator[pa.RecordBatch]:
    schema = _candidate_schema(results)
    front, total = {candidate.number for candidate in results.front}, len(results.candidates)
    for start in range(0, total, CHUNK):
        numbers = range(start, min(start + CHUNK, total))
        rows = [_candidate(results, candidate, front) for candidate in results.candidates.each(numbers)]
        yield pa.RecordBatch.from_pylist(rows, schema=schema)
        if progress is not None:
            progress(numbers.stop, total)


def _candidate(results: Results, candidate: CandidateRecord, front: set[int]) -> dict[str, Any]:
    """One row; what is left out is null."""
    values = candidate.genome.values.tolist() if candidate.genome is not None else []
    row: dict[str, Any] = {
        "number": candidate.number,
        "name": candidate.name,
        "origin": candidate.origin,
        "state": candidate.state,
        "front": candidate.number in front,
        "winner": candidate == results.winner,
        "parents": str(list(candidate.parents)),
        "recipe_digest": candidate.recipe_digest,
        "created": datetime.fromtimestamp(candidate.created, UTC),
    }
    row |= {f"gene:{name}": x for name, x in zip(results.record.row.plan["genes"], values, strict=False)}
    for split, evaluation in candidate.evaluations.items():
        row |= {f"{split}:{name}": value for name, value in _evaluation(evaluation)}
    return row


def _evaluation(evaluation: EvaluationRecord) -> Iterator[tuple[str, Any]]:
    for name, measured in evaluation.scores.items():
        yield name, measured.value
        yield f"{name}:se", measured.standard_error
    if evaluation.failure:
        yield "failure", evaluation.failure.kind.value
        yield "message", evaluation.failure.message
    for cost in COSTS:
        yield cost, getattr(evaluation.cost, cost)


def _document_batches(results: Results) -> Iterator[pa.RecordBatch]:
    known = results.candidates
    for split in SPLITS:
        documents = results.record.row.plan["documents"][split]
        ids = {o.name: np.array(documents.get(o.documents_of, ()), np.int64) for o in results.objectives}
        parts = {name: _parts(results, own) for name, own in ids.items()}
        latest = known.latest(split)
        latest = latest[latest != NONE]
        for start in range(0, len(latest), CHUNK):
            rows = latest[start : start + CHUNK]
            numbers = known.evaluations.candidates[rows]
            scores = list(known.document_scores(rows.tolist()))
            seen = [NONE] * len(rows) if not known.evaluations.stopped[rows].any() else _minibatches(results, numbers)
            given = [{name: parts[name][part] if part != NONE else own for name, own in ids.items()} for part in seen]
            yield _document_batch(split, numbers, given, scores)


def _parts(results: Results, ids: Ints) -> list[Ints]:
    """The minibatches of a task's search documents; none if the search has none."""
    settings = results.file.evaluation.minibatches
    if settings is None:
        return []
    cut = minibatches(Documents({"": tuple(ids.tolist())}), settings)
    return [np.array(part.ids.get("", ()), np.int64) for part in cut]


def _minibatches(results: Results, numbers: Ints) -> list[int]:
    """Which minibatch each of some candidates saw; `NONE` where it saw all documents, or the first ones."""
    stops = [candidate.evaluations["search"].stopped for candidate in results.candidates.each(numbers.tolist())]
    return [NONE if stop is None or stop.minibatch is None else stop.minibatch for stop in stops]


def _document_batch(
    split: Split, numbers: Ints, ids: Sequence[Mapping[str, Ints]], scores: Sequence[Mapping[str, Floats]]
) -> pa.RecordBatch:
    """The scores of some evaluations, one a candidate, by objective; ``ids``: of the documents that it saw first."""
    names = list(ids[0])
    parts = [(n, k, each[name]) for n, each in enumerate(scores) for k, name in enumerate(names) if name in each]
    counts = [len(part) for _, _, part in parts]
    documents = _joined([_documents_of(ids[n][names[k]], len(part)) for n, k, part in parts], np.int64)
    columns = [
        pa.array(np.repeat(numbers[[n for n, _, _ in parts]], counts)),
        _words([split], np.zeros(sum(counts), np.int32)),
        _words(names, np.repeat(np.array([k for _, k, _ in parts], np.int32), counts)),
        pa.array(_joined([np.arange(count) for count in counts], np.int64)),
        pa.array(documents, mask=documents == NONE),
        pa.array(_joined([part for _, _, part in parts], np.float64)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_DOCUMENTS)


def _documents_of(ids: Ints, count: int) -> Ints:
    """The numbers of the first ``count`` documents of a task; `NONE` where the documents are those of several."""
    return ids[:count] if count <= len(ids) else np.full(count, NONE, np.int64)


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])


def _words(words: Sequence[str], places: npt.NDArray[np.int32]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(places), pa.array(words, pa.string()))
