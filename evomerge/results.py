"""The result of a search as values: its state, its front, and the table of the winner beside its references.

Everything here is computed from the record. The terminal, the report and the dashboard show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from evaluators.evaluation import Cost, Floats, Score
from evaluators.objective_kinds import AnyObjective
from evomerge import plugins
from evomerge.archives import pareto
from evomerge.archives import portfolio as portfolios
from evomerge.columns import COSTS, FAILURES, SPLITS, Columns, Ints
from evomerge.config import SearchFile
from evomerge.errors import BadSearch
from evomerge.foreign import a_row
from evomerge.inspection import INSPECTION, Inspection
from evomerge.plugins import PLUGINS
from evomerge.records import CandidateRecord, Split, check_plan
from evomerge.selection import Chooser, Finalist, best_single_coefficient, finalists, references
from evomerge.stopping import Stopping
from evomerge.store import SearchRecord

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
JOINT = "joint"


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; low and high are None where no standard error is known."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """One model of the comparison: estimates by objective name, and `joint`, their weighted mean."""

    label: str
    role: str  # winner, base, expert, uniform average, single coefficient, random search
    candidate: CandidateRecord
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class Results:
    """A search as recorded, with what follows from it."""

    record: SearchRecord
    file: SearchFile
    candidates: Columns

    @classmethod
    def of(cls, record: SearchRecord) -> Results:
        """Read the record of one search."""
        with a_row():
            check_plan(record.row.plan)
            if needed := plugins.missing(record.row.plan.get(PLUGINS, ())):
                raise BadSearch(f"search {record.name!r} uses {needed}")
            file = SearchFile.model_validate(record.row.file)
        return cls(record, file, Columns.read(record, tuple(objective.name for objective in file.objectives)))

    def newer(self) -> Results:
        """Return what the record holds now, reading only what is new since this was read."""
        record = self.record.store.search(self.record.name)
        if record.row.id != self.record.row.id:
            return Results.of(record)
        columns = self.candidates.newer()
        if columns is self.candidates and record.row == self.record.row:
            return self
        return Results(record, SearchFile.model_validate(record.row.file), columns)

    @property
    def objectives(self) -> tuple[AnyObjective, ...]:
        """Objectives in order."""
        return self.file.objectives

    @property
    def optimizer(self) -> str:
        """The algorithm that searches; beside it `auto` if it was not the search file that named it."""
        chosen = self.record.row.plan.get("optimizer")
        return f"{chosen['kind']} (auto)" if chosen else self.file.optimizer.kind

    @cached_property
    def inspection(self) -> Inspection | None:
        """How far the experts are from the base; None in records of versions that did not look."""
        found = self.record.row.plan.get(INSPECTION)
        return Inspection.restore(found) if found else None

    @cached_property
    def chooser(self) -> Chooser:
        """The scale on which objectives are added up."""
        return Chooser.of(self.objectives, self.candidates.of_origin("seed"), self.file.preference)

    @property
    def signs(self) -> Floats:
        """(objectives,) 1 where more is better, -1 where less is."""
        return np.array([float(objective.sign) for objective in self.objectives])

    @cached_property
    def searched(self) -> Ints:
        """(measured,) numbers of the candidates of the search, without baselines, measured on search documents."""
        measured = self.candidates.measured("search")
        return measured[~np.isin(measured, self.candidates.numbers_of("baseline"))]

    @cached_property
    def front(self) -> list[CandidateRecord]:
        """Non-dominated candidates on search documents, the preferred one first."""
        return self._preferred_first(pareto.front(self._turned))

    @cached_property
    def portfolio(self) -> list[CandidateRecord]:
        """The best of every behaviour on search documents, the preferred one first (archives/portfolio.py)."""
        bins = getattr(self.file.optimizer, "bins", portfolios.BINS)
        return self._preferred_first(portfolios.portfolio(self.chooser.preference.scaled(self._turned), bins))

    @property
    def _turned(self) -> Floats:
        """(measured, objectives) values of `searched` on search documents, more is better."""
        return np.asarray(self.candidates.values["search"][self.searched] * self.signs)

    def _preferred_first(self, positions: pareto.Positions) -> list[CandidateRecord]:
        """Return those of `searched`, the best number on search documents first."""
        members = self.candidates.records(self.searched[positions].tolist())
        return sorted(members, key=lambda c: (-self.chooser.number(c, "search"), c.number))

    @cached_property
    def finalists(self) -> list[Finalist]:
        """The candidates measured on validation documents, the best first, with what their scores are worth."""
        validated = self.candidates.records(self.candidates.measured("validation"))
        return finalists(self.chooser, validated, self.record.document_scores)

    @property
    def winner(self) -> CandidateRecord | None:
        """The candidate chosen on validation documents; None before."""
        return self.finalists[0].candidate if self.finalists else None

    @cached_property
    def references(self) -> list[CandidateRecord]:
        """Base, experts, uniform average."""
        return references(self.candidates.of_origin("seed"), self.record.row.plan["expert_names"])

    @cached_property
    def stopping(self) -> Stopping:
        """What the search has spent, and whether it goes on."""
        documents = sum(map(len, self.record.row.plan["documents"]["search"].values()))
        return Stopping.of_columns(
            self.file.budget, self.objectives, self.candidates, self.file.preference, documents=documents
        )

    @property
    def spent(self) -> int:
        """New evaluations on search documents."""
        return self.stopping.evaluations

    @property
    def stop_reason(self) -> str | None:
        """Why no further evaluation is started; None while the search goes on."""
        return self.stopping.reason(seconds=self.record.row.seconds)

    @property
    def stopped(self) -> int:
        """Candidates that saw only some of the documents; answers from the record are not counted."""
        known = self.candidates.evaluations
        mine = known.of("search")
        return int((known.stopped[mine] & known.fresh[mine]).sum())

    @property
    def joint_is_scaled(self) -> bool:
        """Whether `joint` is more than the weighted mean of the objectives as they are: some are turned or scaled."""
        factors, offsets = self.chooser.preference.scale
        turned = any(objective.direction == "minimize" for objective in self.objectives)
        return turned or bool((factors != 1.0).any() or (offsets != 0.0).any())

    @property
    def costs(self) -> dict[Split, Cost]:
        """What was spent on new evaluations, failures included, by split."""
        totals = {split: self.candidates.costs[rows].sum(axis=0) for split, rows in self.fresh.items() if len(rows)}
        return {split: _cost(dict(zip(COSTS, total.tolist(), strict=True))) for split, total in totals.items()}

    @cached_property
    def fresh(self) -> dict[Split, Ints]:
        """Rows of the new evaluations by split, failures included, answers from the record left out."""
        known = self.candidates.evaluations
        return {split: rows[known.fresh[rows]] for split in SPLITS for rows in (known.of(split),)}

    @property
    def failures(self) -> dict[str, int]:
        """Failed evaluations by kind, over all splits."""
        kinds = self.candidates.evaluations.failures
        counts = np.bincount(kinds[kinds >= 0], minlength=len(FAILURES)).tolist()
        return {kind: count for kind, count in zip(FAILURES, counts, strict=True) if count}

    def last_failure(self, kind: str) -> tuple[int, str]:
        """Return number and message of the last candidate that failed with ``kind``, one of `failures`."""
        known = self.candidates.evaluations
        row = int(np.flatnonzero(known.failures == FAILURES.index(kind))[-1])
        number = int(known.candidates[row])
        return number, self.candidates.message(row)

    @property
    def state(self) -> Literal["searching", "validating", "testing", "finished"]:
        """How far the record is, whether or not anybody works on it (`evomerge.standing` tells)."""
        if self.winner is None:
            return "validating" if self.stop_reason else "searching"
        return "finished" if "test" in self.winner.evaluations else "testing"

    def candidate(self, number: int) -> CandidateRecord:
        """Return the candidate with ``number``.

        Raises:
            ValueError: there is none.
        """
        if not 0 <= number < len(self.candidates):
            raise ValueError(
                f"search {self.record.name!r} has candidates 0 to {len(self.candidates) - 1}, not {number}"
            )
        return self.candidates[number]

    def pick(self, text: str) -> CandidateRecord:
        """Return the candidate that ``text`` names: a number, or ``best`` for the winner.

        Raises:
            BadSearch: there is no such candidate.
        """
        if text == "best":
            if self.winner is None:
                raise BadSearch(f"search {self.record.name!r} has no winner yet; run it to its end, or name a number")
            return self.winner
        try:
            return self.candidate(int(text))
        except ValueError as error:
            known = str(error) if text.lstrip("-").isdigit() else f"expected a number or 'best', got {text!r}"
            raise BadSearch(f"candidate: {known}") from None

    def estimate(self, candidate: CandidateRecord, split: Split) -> dict[str, Estimate]:
        """Return the estimate of every objective, and `joint`, on ``split``; empty without a measurement."""
        values = candidate.values(split, self.chooser.names)
        if values is None:
            return {}
        evaluation = candidate.evaluations[split]
        estimates = {}
        for name in self.chooser.names:
            score = evaluation.scores[name]
            documents = self.record.document_scores(evaluation, name)
            estimates[name] = estimate_of(Score(score.value, score.standard_error, documents))
        estimates[JOINT] = self._joint(list(estimates.values()))
        return estimates

    def _joint(self, estimates: Sequence[Estimate]) -> Estimate:
        """The weighted mean on the scales of the preference, with its interval. Unless the search file prefers
        something else, optimizers and the choice of the winner maximise it."""
        factors, offsets = self.chooser.preference.scale
        signs = np.array([objective.sign for objective in self.objectives])
        parts = zip(estimates, (factors * signs).tolist(), offsets.tolist(), strict=True)
        return joint([_affine(*part) for part in parts], self.chooser.preference.weights)

    def table(self, others: Sequence[Results] = ()) -> list[Row]:
        """Return the rows measured on test documents: references, tuned baseline, winners of ``others``, winner."""
        rows = [(c.label, self.role(c), c, self) for c in self.references]
        if tuned := best_single_coefficient(self.chooser, self.candidates.of_origin("baseline")):
            rows.append((tuned.label, "single coefficient", tuned, self))
        for other in others:
            if other.winner:
                rows.append((f"best of {other.record.name}", other.file.optimizer.kind, other.winner, other))
        if self.winner:
            rows.append((f"winner ({self.winner.label})", "winner", self.winner, self))
        table = [Row(label, role, c, results.estimate(c, "test")) for label, role, c, results in rows]
        return [row for row in table if row.estimates]

    def role(self, candidate: CandidateRecord) -> str:
        """Return what a reference is: base, expert or uniform average."""
        experts = self.record.row.plan["expert_names"]
        return "expert" if candidate.name in experts else str(candidate.name)


def _cost(totals: dict[str, float]) -> Cost:
    return Cost(**{name: int(total) if name in ("tokens", "documents") else total for name, total in totals.items()})  # type: ignore[arg-type]


def estimate_of(score: Score) -> Estimate:
    """Return a score with its 95 % interval: Wilson's for a rate, Student's for another mean, else the normal one."""
    from evaluators.statistics import score_interval

    interval = score_interval(score)
    if interval is None:
        return _normal(score.value, score.standard_error)
    return Estimate(score.value, interval.low, interval.high)


def joint(estimates: Sequence[Estimate], weights: Floats) -> Estimate:
    """Return the weighted mean of independent objectives with its 95 % interval.

    The distances to the objectives' own limits are added in squares (MOVER, Zou and Donner 2008), so rates of 0 and 1
    keep an honest width. Without every limit there is no interval.
    """
    share = (weights / weights.sum()).tolist()
    value = sum(w * e.value for w, e in zip(share, estimates, strict=True))
    below, above = 0.0, 0.0
    for weight, estimate in zip(share, estimates, strict=True):
        if estimate.low is None or estimate.high is None:
            return Estimate(value, None, None)
        below += (weight * (estimate.value - estimate.low)) ** 2
        above += (weight * (estimate.high - estimate.value)) ** 2
    return Estimate(value, value - math.sqrt(below), value + math.sqrt(above))


def _affine(estimate: Estimate, slope: float, offset: float) -> Estimate:
    """Return ``slope * x + offset`` of a value and its limits; a negative slope swaps the limits."""
    limits = [None if x is None else slope * x + offset for x in (estimate.low, estimate.high)]
    low, high = limits if slope >= 0 else reversed(limits)
    return Estimate(slope * estimate.value + offset, low, high)


def _normal(value: float, standard_error: float | None) -> Estimate:
    if standard_error is None:
        return Estimate(value, None, None)
    return Estimate(value, value - Z95 * standard_error, value + Z95 * standard_error)
