"""Evaluation in blocks: any evaluator, asked block by block, until a race is lost or all documents are seen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from evaluators.evaluation import Cost, Documents, Evaluation, Failure, FailureKind, Floats, Outcome, Score, Stop
from evaluators.objective import Objective
from evaluators.protocol import Evaluator
from evaluators.racing import Race, blocks, estimates, judge


class BlockwiseEvaluator:
    """Lets models race: asks an evaluator for one block of documents after the other.

    A race that is run to its end gives the scores that the evaluator gives for all documents at once, up to the
    rounding of other batches in the forward pass. The metrics must be means over documents.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        objectives: Sequence[Objective],
        *,
        timeout_seconds: float = math.inf,
    ) -> None:
        """``timeout_seconds``: for all blocks of one model together."""
        self._evaluator = evaluator
        self._objectives = tuple(objectives)
        self._timeout = timeout_seconds

    def evaluate(self, model: object, documents: Documents, race: Race) -> Outcome:
        """Return the scores of ``model`` on ``documents``, or where it lost the ``race``, or why there are none.

        Raises:
            ValueError: as the evaluator.
        """
        seen: list[Evaluation] = []
        cost = Cost()
        cut = blocks(documents, race.settings)
        for block in cut:
            if cost.seconds > self._timeout:
                return Failure(FailureKind.TIMED_OUT, f"took longer than {self._timeout:g} s", cost)
            outcome = self._evaluator.evaluate(model, block)
            cost += outcome.cost
            if isinstance(outcome, Failure):
                return replace(outcome, cost=cost)
            seen.append(outcome)
            if block is cut[-1]:
                break
            if stop := self._stop(race, documents, _scores(seen)):
                return _evaluation(documents, estimates(race.par, _scores(seen)), seen, cost, stop)
        scores = {name: Score.mean_of(values) for name, values in _scores(seen).items()}
        return _evaluation(documents, scores, seen, cost, None)

    def _stop(self, race: Race, documents: Documents, seen: Mapping[str, Floats]) -> Stop | None:
        lost = judge(race, self._objectives, seen, threshold=race.settings.threshold)
        if lost is None:
            return None
        rival, chance = lost
        counts = {o.task: len(seen[o.name]) for o in self._objectives}
        return Stop(documents=sum(counts.values()), of=documents.count, rival=rival, chance=chance, par=race.par_of)


def _scores(seen: Sequence[Evaluation]) -> dict[str, Floats]:
    """All scores seen so far by objective name; a task may be missing from a block."""
    names = dict.fromkeys(name for evaluation in seen for name in evaluation.scores)
    return {name: np.concatenate([e.scores[name].documents for e in seen if name in e.scores]) for name in names}


def _evaluation(
    documents: Documents, scores: Mapping[str, Score], seen: Sequence[Evaluation], cost: Cost, stopped: Stop | None
) -> Evaluation:
    truncated = sum((Counter(evaluation.truncated) for evaluation in seen), Counter())
    over_limits = sum((Counter(evaluation.over_limits) for evaluation in seen), Counter())
    return Evaluation(
        documents.digest, dict(scores), _tie_breaks(seen), cost, dict(truncated), dict(over_limits), stopped
    )


def _tie_breaks(seen: Sequence[Evaluation]) -> dict[str, float]:
    """Means over documents of the blocks' means."""
    found = {}
    for name in dict.fromkeys(name for evaluation in seen for name in evaluation.tie_breaks):
        pairs = [(len(e.scores[name].documents), e.tie_breaks[name]) for e in seen if name in e.tie_breaks]
        found[name] = math.fsum(n * value for n, value in pairs) / sum(n for n, _ in pairs)
    return found
