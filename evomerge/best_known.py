"""The best candidates measured on all search documents so far, and what they score on each: what others are held to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evaluators.evaluation import Floats
from evaluators.objective import Objective
from evaluators.racing import Par
from evomerge.archives import pareto
from evomerge.optimizers.preference import Preference
from evomerge.records import CandidateRecord, EvaluationRecord, ReadScores
from search_spaces.genes import Vector

CONTENDERS = 64  # by joint number; a late seed may change the scales, so more than par are kept
MOST_KNOWN = 500  # candidates between two clearings
PAR = 8  # candidates whose mean is par; more candidates, less noise in it, but also less like the best


class BestKnown:
    """Follows the evaluations of a search; its size does not grow with the record."""

    def __init__(self, objectives: Sequence[Objective], read_scores: ReadScores) -> None:
        """``read_scores``: (documents,) scores of an evaluation by objective name, as recorded."""
        self.names = tuple(objective.name for objective in objectives)
        self.signs = np.array([objective.sign for objective in objectives])
        self.preference = Preference(np.array([objective.weight for objective in objectives]))
        self._read = read_scores
        self._known: dict[int, tuple[EvaluationRecord, Vector]] = {}  # by candidate number; values maximised
        self._most = MOST_KNOWN
        self._scores: dict[tuple[int, str], Floats] = {}

    def __len__(self) -> int:
        """Return how many candidates are kept."""
        return len(self._known)

    def see(self, candidate: CandidateRecord) -> None:
        """Take in a candidate's search evaluation; an estimate, a failure or an answer from another is ignored."""
        evaluation = candidate.evaluations.get("search")
        values = candidate.values("search", self.names)
        if evaluation is None or values is None or evaluation.answered_from is not None:
            return
        if candidate.origin == "seed":
            self.preference.see_seed(values * self.signs)
        self._known[candidate.number] = (evaluation, values * self.signs)
        if len(self._known) > self._most:
            self._forget()

    def ranked(self) -> tuple[npt.NDArray[np.intp], Vector, npt.NDArray[np.intp]]:
        """Return numbers (n,), maximised values (n, objectives), and positions by joint number, the best first."""
        numbers = np.array(list(self._known), dtype=np.intp)
        values = np.stack([values for _, values in self._known.values()])
        joint = self.preference.scaled(values) @ self.preference.weights
        return numbers, values, np.lexsort((numbers, -joint))

    def par(self) -> tuple[tuple[int, ...], dict[str, Par]]:
        """Return the numbers of the `PAR` best, and the mean of their scores on each document by objective name."""
        numbers, _, best = self.ranked()
        par_of = tuple(int(numbers[i]) for i in best[:PAR])
        kept = {}
        for number in par_of:
            evaluation, _ = self._known[number]
            for name in self.names:
                key = (number, name)
                kept[key] = self._scores[key] if key in self._scores else self._read(evaluation, name)
        self._scores = kept
        par = {}
        for name in self.names:
            scores = np.stack([kept[number, name] for number in par_of])
            par[name] = Par(scores.mean(axis=0), float(scores.min()), float(scores.max()))
        return par_of, par

    def _forget(self) -> None:
        """Keep only who may be one of the best or on the front."""
        numbers, values, best = self.ranked()
        kept = {*best[:CONTENDERS].tolist(), *pareto.front(values).tolist()}
        self._known = {int(numbers[i]): self._known[int(numbers[i])] for i in sorted(kept)}
        self._most = 2 * len(self._known) + MOST_KNOWN
