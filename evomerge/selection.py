"""From a searched record to its front, its winner and the baselines that the winner is compared with.

Scores on search documents choose the finalists, validation documents choose the winner, and test documents only
report: nothing is chosen by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluators.objective_kinds import AnyObjective
from evomerge.archives import pareto
from evomerge.optimizers.preference import Preference
from evomerge.preferences import PreferenceSettings, make_preference
from evomerge.records import CandidateRecord, ReadScores, Split
from evomerge.shrinkage import error_variance
from search_spaces.genes import Vector
from search_spaces.seeds import UNIFORM, single_coefficient

if TYPE_CHECKING:
    from evomerge.search import Search  # takes SciPy along, which readers of the record need not wait for

SINGLE = "single coefficient"
HIGHEST_COEFFICIENT = 1.5


@dataclass(frozen=True)
class Chooser:
    """The objectives of a search and the scales on which they are added up."""

    objectives: tuple[AnyObjective, ...]
    preference: Preference

    @classmethod
    def of(
        cls,
        objectives: tuple[AnyObjective, ...],
        candidates: Iterable[CandidateRecord],
        preference: PreferenceSettings | None,
    ) -> Chooser:
        """Make one whose scales follow from the seeds among ``candidates``."""
        chooser = cls(objectives, make_preference(objectives, preference))
        for candidate in candidates:
            values = chooser.maximised(candidate, "search") if candidate.origin == "seed" else None
            if values is not None:
                chooser.preference.see_seed(values)
        return chooser

    @property
    def names(self) -> tuple[str, ...]:
        """AnyObjective names in order."""
        return tuple(objective.name for objective in self.objectives)

    def maximised(self, candidate: CandidateRecord, split: Split) -> Vector | None:
        """Return (objectives,) values with every objective turned so that more is better."""
        values = candidate.values(split, self.names)
        return None if values is None else values * np.array([objective.sign for objective in self.objectives])

    def number(self, candidate: CandidateRecord, split: Split) -> float:
        """Return the preference's single number on ``split``; minus infinity without a measurement."""
        values = self.maximised(candidate, split)
        return -np.inf if values is None else self.preference.scalar(values)

    def best(self, candidates: Sequence[CandidateRecord], split: Split) -> CandidateRecord | None:
        """Return the candidate with the best number on ``split``, the first of equals; None if none is measured."""
        measured = [c for c in candidates if self.maximised(c, split) is not None]
        return max(measured, key=lambda c: (self.number(c, split), -c.number), default=None)

    def front(self, candidates: Iterable[CandidateRecord], split: Split = "search") -> list[CandidateRecord]:
        """Return the non-dominated candidates on ``split``, the best number first."""
        pairs = [(c, self.maximised(c, split)) for c in candidates if c.origin != "baseline"]
        measured = [(c, values) for c, values in pairs if values is not None]
        if not measured:
            return []
        kept = pareto.front(np.stack([values for _, values in measured]))
        return sorted((measured[i][0] for i in kept), key=lambda c: (-self.number(c, split), c.number))


class Finalist(NamedTuple):
    """A candidate measured on validation, and what its joint score there is worth without the winner's curse."""

    candidate: CandidateRecord
    worth: float


def finalists(chooser: Chooser, candidates: Iterable[CandidateRecord], read_scores: ReadScores) -> list[Finalist]:
    """Return the candidates of the search measured on validation, the best first.

    The best of many noisy scores is too good, and not always the best. So validation scores are drawn towards what
    search scores, measured on other documents, let expect (`evaluators.statistics.shrink`), as far as their scatter
    is chance (`evomerge/shrinkage.py`).
    """
    from evaluators.statistics import shrink

    measured = [c for c in candidates if c.origin != "baseline" and chooser.maximised(c, "validation") is not None]
    worth = np.array([chooser.number(c, "validation") for c in measured])
    search = np.array([chooser.number(c, "search") for c in measured])
    variance = error_variance(measured, chooser.objectives, chooser.preference, read_scores)
    if variance is not None and np.isfinite(search).all():
        worth = shrink(worth, variance, search)
    pairs = [Finalist(c, w) for c, w in zip(measured, worth.tolist(), strict=True)]
    return sorted(pairs, key=lambda f: (-f.worth, f.candidate.number))


def best_single_coefficient(chooser: Chooser, candidates: Iterable[CandidateRecord]) -> CandidateRecord | None:
    """Return the baseline of one coefficient with the best number on validation."""
    grid = [c for c in candidates if c.origin == "baseline" and (c.name or "").startswith(SINGLE)]
    return chooser.best(grid, "validation")


def references(candidates: Iterable[CandidateRecord], expert_names: Sequence[str]) -> list[CandidateRecord]:
    """Return base, experts and uniform average, in that order, as far as they are there."""
    seeds = {c.name: c for c in candidates if c.origin == "seed"}
    return [seeds[name] for name in ("base", *expert_names, UNIFORM) if name in seeds]


def conclude(search: Search) -> CandidateRecord | None:
    """Validate the finalists and the tuned baseline, and measure the winner and all references on test documents.

    Everything that the record already holds is left alone, so a stopped conclusion continues.
    """
    file = search.problem.file
    chooser = Chooser.of(file.objectives, search.candidates.values(), file.preference)
    front = chooser.front(search.candidates.values())[: file.budget.finalists]
    steps = file.baselines.single_coefficient
    grid = [
        search.baseline(f"{SINGLE} {value:.3g}", single_coefficient(search.problem.space, float(value)))
        for value in np.linspace(0.0, HIGHEST_COEFFICIENT, steps + 1)[1:]
    ]
    search.measure([*front, *grid], "validation")
    candidates = list(search.candidates.values())
    ranked = finalists(chooser, candidates, search.record.document_scores)
    if not ranked:
        return None
    best = ranked[0].candidate
    tuned = best_single_coefficient(chooser, candidates)
    compared = [best, *references(candidates, search.problem.space.expert_names), *([tuned] if tuned else [])]
    search.measure(compared, "test")
    return search.candidates[best.number]
