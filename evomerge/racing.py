"""What a candidate has to reach, from the evaluations recorded so far: the driver's side of racing.

The worker decides when a race is lost (evaluators/racing.py); the driver says against whom it is run. An optimizer
that climbs one number (it declares `single_number = True`) races against the candidate with the best one: nothing
else can become its result. Any other races against the front, so nothing is lost that could have joined it. Seeds,
and everything on validation and test documents, are measured in full.
"""

from __future__ import annotations

import numpy as np

from evaluators.evaluation import Floats
from evaluators.objective import RacingSettings
from evaluators.racing import Race, Rival
from evomerge.archives import pareto
from evomerge.best_known import BestKnown
from evomerge.errors import BadSearch
from evomerge.optimizers.contract import Optimizer


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
    """Sets the races against what was measured in full; see the module's text."""

    def __init__(self, best: BestKnown, settings: RacingSettings, *, single_number: bool) -> None:
        self._best, self._settings, self._single_number = best, settings, single_number

    def race(self) -> Race | None:
        """Return the race of the next candidate; None while there is nobody to race against."""
        if not len(self._best):
            return None
        numbers, values, best = self._best.ranked()
        rivals = best[:1] if self._single_number else pareto.front(values)
        par_of, par = self._best.par()
        return Race(
            par=par,
            par_of=par_of,
            rivals=tuple(Rival(int(numbers[i]), values[i] * self._best.signs) for i in rivals),
            criteria=self._criteria(),
            settings=self._settings,
        )

    def _criteria(self) -> Floats:
        if not self._single_number:
            return np.diag(self._best.signs)
        factors, _ = self._best.preference.scale
        weights = self._best.preference.weights
        return np.asarray(self._best.signs * factors * weights / weights.sum())[None, :]
