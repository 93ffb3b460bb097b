"""One number out of several objectives: a weighted mean, each objective scaled to the range of the seeds.

The optimizers of a single number and the choice of the winner use the same rule. Failures have one rule too:
they have no number, and whoever ranks puts them behind every success (`ranked_values`).
"""

from __future__ import annotations

import numpy as np

from evomerge.optimizers.contract import Observation
from search_spaces.genes import Vector

TIE_BREAK_SHARE = 1e-6  # far below one document in ten thousand, so a tie-break never outweighs a document


class Preference:
    """Weighted mean of objectives scaled to the range that seed candidates span.

    Until two different seed values of an objective are known its scale is 1.
    """

    def __init__(self, weights: Vector) -> None:
        """``weights``: (objectives,) positive."""
        self.weights = np.asarray(weights, dtype=np.float64)
        if not (self.weights > 0).all():
            raise ValueError(f"objective weights must be positive, got {self.weights.tolist()}")
        self._low = np.full(len(self.weights), np.inf)
        self._high = np.full(len(self.weights), -np.inf)

    def see_seed(self, values: Vector) -> None:
        """Widen the ranges by one seed's (objectives,) values."""
        self._low = np.minimum(self._low, values)
        self._high = np.maximum(self._high, values)

    def scaled(self, values: Vector) -> Vector:
        """Return ``values`` ((..., objectives)) with each objective's seed range mapped to [0, 1]."""
        known = self._high > self._low
        low = np.where(known, self._low, 0.0)
        scale = np.where(known, self._high - self._low, 1.0)
        return np.asarray((values - low) / scale)

    def scalar(self, values: Vector, tie_break: float = 0.0) -> float:
        """Return the weighted mean of the scaled (objectives,) ``values``, nudged by the tie-break."""
        mean = float(self.scaled(values) @ self.weights / self.weights.sum())
        return mean + nudge(tie_break)


def nudge(tie_break: float) -> float:
    """Return a number within `TIE_BREAK_SHARE` of 0 that grows with ``tie_break``, to be added to a value."""
    return TIE_BREAK_SHARE * tie_break / (1.0 + abs(tie_break))


def ranked_values(observations: list[Observation], preference: Preference) -> list[float]:
    """Return one number per observation, more is better; a failure gets less than the worst success.

    Raises:
        ValueError: every observation is a failure, so there is nothing to learn from.
    """
    numbers = [None if o.values is None else preference.scalar(o.values, o.tie_break) for o in observations]
    worst = min((n for n in numbers if n is not None), default=None)
    if worst is None:
        raise ValueError("all observations failed")
    return [worst - 1.0 if n is None else n for n in numbers]
