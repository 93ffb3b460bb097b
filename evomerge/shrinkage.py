"""How much of the finalists' validation scores is chance: what shrinking them needs to know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluators.objective_kinds import AnyObjective
from evomerge.optimizers.preference import Preference, WeightedMean
from evomerge.records import CandidateRecord, ReadScores


def error_variance(
    finalists: Sequence[CandidateRecord],
    objectives: Sequence[AnyObjective],
    preference: Preference,
    read_scores: ReadScores,
) -> float | None:
    """Return the variance of the joint validation score that is not common to all finalists.

    None where it has no closed form: fewer than two finalists, a metric that is no mean over documents, a preference
    other than the weighted mean.
    """
    from evaluators.statistics import paired_variance

    evaluations = [candidate.evaluations["validation"] for candidate in finalists]
    means = all(m.standard_error is not None for e in evaluations for m in e.scores.values())
    if len(finalists) < 2 or not isinstance(preference.aim, WeightedMean) or not means:
        return None
    factors, _ = preference.scale
    shares = (factors * preference.weights / preference.weights.sum()).tolist()
    variance = 0.0
    for task in dict.fromkeys(objective.documents_of for objective in objectives if objective.documents_of):
        mine = [(o.sign * share, o.name) for share, o in zip(shares, objectives, strict=True) if o.documents_of == task]
        rows = [np.sum([share * read_scores(e, name) for share, name in mine], axis=0) for e in evaluations]
        variance += paired_variance(np.stack(rows))
    return variance
