"""Two candidates document by document: what one solves and the other does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluators.statistics import Interval, mean_interval
from evomerge.errors import BadSearch
from evomerge.records import CandidateRecord, Split
from evomerge.results import Results


@dataclass(frozen=True)
class Comparison:
    """The documents of one objective by who scores higher on them; ids are those of the task.

    Attributes:
        labels: of the two candidates.
        binary: every score is 0 or 1, so that a document is solved or not.
        both: documents on which both score the same, in a binary comparison: that both solve.
        first, second: documents on which the first or the second scores higher.
        neither: in a binary comparison, documents that nobody solves.
        difference: mean of the first's scores minus the second's with its 95 % interval (paired); no interval for
            fewer than two documents.
    """

    labels: tuple[str, str]
    binary: bool
    both: tuple[int, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]
    neither: tuple[int, ...]
    mean: float
    difference: Interval | None


def compare(
    results: Results, one: CandidateRecord, other: CandidateRecord, *, split: Split, objective: str
) -> Comparison:
    """Compare two candidates on the documents of ``split`` by one objective.

    Raises:
        BadSearch: one of them was not measured on these documents, or the objective has no scores of documents.
    """
    for candidate in (one, other):
        if candidate.values(split, results.chooser.names) is None:
            raise BadSearch(f"{candidate.label} was not measured on all {split} documents")
    mine = next(o for o in results.objectives if o.name == objective)
    task = mine.documents_of
    rows = [results.record.document_scores(c.evaluations[split], objective) for c in (one, other)]
    ids = results.record.row.plan["documents"][split].get(task, []) if task else []
    if not len(rows[0]) or not len(rows[0]) == len(rows[1]) == len(ids):
        raise BadSearch(f"{objective} has no score of each document")
    table, documents = np.stack(rows), np.array(ids)
    binary = bool(np.isin(table, (0.0, 1.0)).all())
    difference = table[0] - table[1]
    gap = mine.sign * difference
    same = gap == 0.0
    solved = table[0] > 0.0 if binary else np.ones(len(gap), dtype=bool)
    parts = (same & solved, gap > 0.0, gap < 0.0, same & ~solved)
    both, first, second, neither = (tuple(documents[part].tolist()) for part in parts)
    interval = mean_interval(difference) if len(difference) > 1 else None
    labels = (one.label, other.label)
    return Comparison(labels, binary, both, first, second, neither, float(difference.mean()), interval)
