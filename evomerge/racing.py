"""What a candidate has to reach, from the evaluations recorded so far: the driver's side of racing.

The worker decides when a race is lost (evaluators/racing.py); the driver says against whom it is run. An optimizer
that climbs one number (it declares `single_number = True`) races against the candidate with the best one: nothing
else can become its result. Any other races against the front, so nothing is lost that could have joined it. Seeds,
and everything on validation and test documents, are measured in full.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evaluators.evaluation import Floats
from evaluators.objective import Objective, RacingSettings
from evaluators.racing import Par, Race, Rival
from evomerge.archives import pareto
from evomerge.errors import BadSearch
from evomerge.optimizers.contract import Optimizer
from evomerge.optimizers.preference import Preference
from evomerge.records import CandidateRecord, EvaluationRecord, ReadScores
from search_spaces.genes import Vector

CONTENDERS = 64  # by joint number; a late seed may change the scales, so more than par are kept
MOST_KNOWN = 500  # candidates between two clearings
PAR = 8  # candidates whose mean is par; more candidates, less noise in it, but also less like the best


def refuse_unraceable(optimizer: Optimizer, kind: str) -> None:
    """Refuse an optimizer that learns from the scores of all documents.

    Raises:
        BadSearch: it is one.
    """
    if getattr(optimizer, "needs_documents", False):
        raise BadSearch(
            f"evaluation.racing: optimizer {kind} needs every document's score of every candidate, and racing leaves "
            "some out; remove racing, or choose another optimizer"
        )


class Referee:
    """Knows what was measured in full, and sets the races; see the module's text."""

    def __init__(
        self,
        objectives: tuple[Objective, ...],
        settings: RacingSettings,
        *,
        preference: Preference,
        single_number: bool,
        read_scores: ReadScores,
    ) -> None:
        """Make one.

        Args:
            preference: whose scales add objectives up; whoever made it shows it the seeds.
            read_scores: (documents,) scores of an evaluation by objective name, as recorded.
        """
        self._names = tuple(objective.name for objective in objectives)
        self._signs = np.array([objective.sign for objective in objectives])
        self._preference = preference
        self._settings = settings
        self._single_number = single_number
        self._read = read_scores
        self._known: dict[int, tuple[EvaluationRecord, Vector]] = {}  # by candidate number; values maximised
        self._most = MOST_KNOWN
        self._scores: dict[tuple[int, str], Floats] = {}

    def see(self, candidate: CandidateRecord) -> None:
        """Take in a candidate's search evaluation; one that was stopped, failed or answered from another is ignored."""
        evaluation = candidate.evaluations.get("search")
        values = candidate.values("search", self._names)
        if evaluation is None or values is None or evaluation.answered_from is not None:
            return
        self._known[candidate.number] = (evaluation, values * self._signs)
        if len(self._known) > self._most:
            self._forget()

    def _forget(self) -> None:
        """Keep only who may set a race: the cost of a race must not grow with the record."""
        numbers, values, best = self._ranked()
        kept = {*best[:CONTENDERS].tolist(), *pareto.front(values).tolist()}
        self._known = {int(numbers[i]): self._known[int(numbers[i])] for i in sorted(kept)}
        self._most = 2 * len(self._known) + MOST_KNOWN

    def _ranked(self) -> tuple[npt.NDArray[np.intp], Vector, npt.NDArray[np.intp]]:
        """Return numbers (n,), maximised values (n, objectives), and positions by joint number, the best first."""
        numbers = np.array(list(self._known), dtype=np.intp)
        values = np.stack([values for _, values in self._known.values()])
        joint = self._preference.scaled(values) @ self._preference.weights
        return numbers, values, np.lexsort((numbers, -joint))

    def race(self) -> Race | None:
        """Return the race of the next candidate; None while there is nobody to race against."""
        if not self._known:
            return None
        numbers, values, best = self._ranked()
        rivals = best[:1] if self._single_number else pareto.front(values)
        par_of = tuple(int(numbers[i]) for i in best[:PAR])
        return Race(
            par=self._par(par_of),
            par_of=par_of,
            rivals=tuple(Rival(int(numbers[i]), values[i] * self._signs) for i in rivals),
            criteria=self._criteria(),
            settings=self._settings,
        )

    def _criteria(self) -> Floats:
        if not self._single_number:
            return np.diag(self._signs)
        factors, _ = self._preference.scale
        weights = self._preference.weights
        return np.asarray(self._signs * factors * weights / weights.sum())[None, :]

    def _par(self, candidates: tuple[int, ...]) -> dict[str, Par]:
        kept = {}
        for number in candidates:
            evaluation, _ = self._known[number]
            for name in self._names:
                key = (number, name)
                kept[key] = self._scores[key] if key in self._scores else self._read(evaluation, name)
        self._scores = kept
        par = {}
        for name in self._names:
            scores = np.stack([kept[number, name] for number in candidates])
            par[name] = Par(scores.mean(axis=0), float(scores.min()), float(scores.max()))
        return par
