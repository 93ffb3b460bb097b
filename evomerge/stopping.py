"""When a search stops, and why: budgets, plateau, stall. Decided from the record alone: a replayed search stops alike.

Two budgets limit what is started: `budget.evaluations` and `budget.documents` (those of new evaluations on search
documents). The other two rules notice that the search has stopped paying: `budget.plateau`, evaluations without a
better joint score, and `budget.stall`, evaluations without growth of the front's hypervolume. They begin to count when
the seeds are measured. `budget.hours` needs the wall time, which the record keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluators.objective_kinds import AnyObjective
from evomerge.archives.pareto import Front, hypervolume
from evomerge.columns import COSTS, Columns
from evomerge.config import BudgetSettings
from evomerge.preferences import PreferenceSettings, make_preference
from evomerge.records import CandidateRecord
from search_spaces.genes import Vector

MOST_ANSWERS_IN_A_ROW = 1000  # an optimizer that only repeats itself has converged


class Stopping:
    """Follows the evaluations of a search in the order in which its optimizer is told of them."""

    def __init__(
        self,
        budget: BudgetSettings,
        objectives: Sequence[AnyObjective],
        preference: PreferenceSettings | None = None,
        *,
        documents: int,
    ) -> None:
        """``preference``: what is a better score; ``documents``: on how many a candidate is measured at most."""
        self._budget = budget
        self._names = tuple(objective.name for objective in objectives)
        self._signs = np.array([objective.sign for objective in objectives])
        self._preference = make_preference(objectives, preference)
        self._documents_each = documents
        self._best: Vector | None = None
        self._front = Front(len(self._names))
        self._volume = 0.0  # when the hypervolume last grew enough
        self._better_at = self._grown_at = 0
        self._answers = 0  # in a row
        self.evaluations = 0  # new ones on search documents, seeds and failures included
        self.documents = 0  # of those; `of_columns` counts them only where the budget limits them

    @classmethod
    def of_columns(
        cls,
        budget: BudgetSettings,
        objectives: Sequence[AnyObjective],
        columns: Columns,
        preference: PreferenceSettings | None = None,
        *,
        documents: int,
    ) -> Stopping:
        """Make one that has followed what is recorded in ``columns``: as `add` would, in a fraction of the time."""
        stopping = cls(budget, objectives, preference, documents=documents)
        known, told = columns.evaluations, columns.evaluations.told
        fresh = told[known.fresh[told]]
        stopping.evaluations = len(fresh)
        stopping._answers = len(told) - (int(np.flatnonzero(known.fresh[told])[-1]) + 1 if len(fresh) else 0)
        if budget.documents is not None:
            stopping.documents = int(columns.costs[fresh, COSTS.index("documents")].sum())
        if budget.plateau is not None or budget.stall is not None:
            seeds = np.isin(known.candidates[fresh], columns.numbers_of("seed"))
            full = np.isfinite(known.values[fresh]).all(axis=1) & ~known.stopped[fresh]
            for place in np.flatnonzero(full).tolist():
                stopping.evaluations = place + 1
                stopping._see(known.values[fresh[place]] * stopping._signs, seed=bool(seeds[place]))
            stopping.evaluations = len(fresh)
        return stopping

    def add(self, candidate: CandidateRecord) -> None:
        """Take in the search evaluation of ``candidate``."""
        evaluation = candidate.evaluations["search"]
        if evaluation.answered_from is not None:
            self._answers += 1
            return
        self._answers = 0
        self.evaluations += 1
        self.documents += evaluation.cost.documents
        values = candidate.values("search", self._names)
        if values is not None:
            self._see(values * self._signs, seed=candidate.origin == "seed")

    def reason(self, *, seconds: float = 0.0, in_flight: int = 0) -> str | None:
        """Return why no further evaluation is started, None while the search goes on.

        Args:
            seconds: wall time that the search has taken.
            in_flight: evaluations that are started and not back; they count as spent.
        """
        budget, spent = self._budget, self.evaluations + in_flight
        documents = self.documents + in_flight * self._documents_each
        if spent >= budget.evaluations:
            return f"the budget of {budget.evaluations:,} evaluations is spent"
        if budget.documents is not None and documents >= budget.documents:
            return f"the budget of {budget.documents:,} documents is spent"
        if budget.hours is not None and seconds >= budget.hours * 3600.0:
            return f"{budget.hours:g} hours have passed"
        if budget.plateau is not None and self.evaluations - self._better_at >= budget.plateau:
            return f"no better joint score in {budget.plateau:,} evaluations"
        if budget.stall is not None and self.evaluations - self._grown_at >= budget.stall:
            return f"hypervolume has grown by no more than {budget.stall_growth:.2%} in {budget.stall:,} evaluations"
        if self._answers >= MOST_ANSWERS_IN_A_ROW:
            return f"the optimizer has proposed {self._answers:,} known candidates in a row"
        return None

    def _see(self, values: Vector, *, seed: bool) -> None:
        if seed:
            self._preference.see_seed(values)
        tolerance = self._budget.plateau_tolerance
        best = -np.inf if self._best is None else self._preference.scalar(self._best)
        number = self._preference.scalar(values)
        if seed or number > best + tolerance:
            self._better_at = self.evaluations
        if number > best + (0.0 if seed else tolerance):
            self._best = values
        if self._budget.stall is not None and (self._front.add(values) or seed):
            self._measure_front(seed=seed)

    def _measure_front(self, *, seed: bool) -> None:
        """Hypervolume above 0 on the scales of the joint score; a seed may change these scales."""
        scaled = self._preference.scaled(self._front.values)
        volume = hypervolume(scaled, np.zeros(scaled.shape[1]))
        if seed or volume > self._volume * (1.0 + self._budget.stall_growth):
            self._volume, self._grown_at = volume, self.evaluations
