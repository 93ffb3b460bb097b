"""One number out of several objectives, on scales that can be added up: their weighted mean, or what else is preferred.

An objective whose seeds lie within [-1, 1] - a rate, an error rate - keeps its own scale; a negative one is shifted by
one, so that it lies in [0, 1] too. Any other (a perplexity, a length) is scaled to the range that the seeds span. A
range of the seeds is no scale for rates: where every seed scores next to nothing, it would let the noise of one
objective outweigh all the others.

- **Weighted mean**: ``sum_j w_j v_j / sum_j w_j`` over the scaled values v.
- **Chebyshev**: ``1 - max_j (w_j / max w)(1 - v_j)``, the objective that falls shortest of 1, by weight; a hundredth of
  the weighted mean is mixed in (augmented, Steuer and Choo 1983), so that of equals the better all round wins.
- **Constraint**: the weighted mean where every objective keeps its limit; a point that does not comes behind all that
  do, by how far it misses (epsilon-constraint, Haimes et al. 1971; ordered as Deb 2000).

The optimizers of a single number and the choice of the winner use the same rule. Failures have one rule too: they have
no number, and whoever ranks puts them behind every success (`ranked_values`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from evomerge.optimizers.contract import Observation
from search_spaces.genes import Vector

AUGMENTATION = 0.01  # share of the weighted mean in the Chebyshev number
TIE_BREAK_SHARE = 1e-6  # far below one document in ten thousand, so a tie-break never outweighs a document
BEHIND = 1e-9  # by how much the best estimate stays behind; only the order matters


@dataclass(frozen=True)
class WeightedMean:
    """The weighted mean alone."""


@dataclass(frozen=True)
class Chebyshev:
    """The objective that falls shortest."""


@dataclass(frozen=True)
class Constraint:
    """``limits``: the least that each maximised objective must reach, minus infinity for none."""

    limits: tuple[float, ...]


Aim: TypeAlias = WeightedMean | Chebyshev | Constraint
WEIGHTED_MEAN = WeightedMean()


class Preference:
    """One number for objectives on common scales; see the module's text."""

    def __init__(self, weights: Vector, aim: Aim = WEIGHTED_MEAN) -> None:
        """``weights``: (objectives,) positive."""
        self.aim = aim
        self.weights = np.asarray(weights, dtype=np.float64)
        if not (self.weights > 0).all():
            raise ValueError(f"objective weights must be positive, got {self.weights.tolist()}")
        self._low = np.full(len(self.weights), np.inf)
        self._high = np.full(len(self.weights), -np.inf)

    def see_seed(self, values: Vector) -> None:
        """Widen the ranges by one seed's (objectives,) values."""
        self._low = np.minimum(self._low, values)
        self._high = np.maximum(self._high, values)

    @property
    def scale(self) -> tuple[Vector, Vector]:
        """(objectives,) factors and offsets: ``factor * value + offset`` is what is added up."""
        rate = (np.maximum(np.abs(self._low), np.abs(self._high)) <= 1.0) | ~np.isfinite(self._low)
        spread = self._high > self._low
        factor = np.divide(1.0, self._high - self._low, out=np.ones_like(self._low), where=~rate & spread)
        shift = np.where(self._low < 0.0, 1.0, 0.0)
        offset = np.where(rate, shift, -np.where(rate, 0.0, self._low) * factor)
        return factor, offset

    def scaled(self, values: Vector) -> Vector:
        """Return ``values`` ((..., objectives)) on the common scales."""
        factor, offset = self.scale
        return np.asarray(values * factor + offset)

    def scalar(self, values: Vector, tie_break: float = 0.0) -> float:
        """Return the number that is maximised for (objectives,) ``values``, nudged by the tie-break."""
        return self.over(values, range(len(self.weights))) + nudge(tie_break)

    def over(self, values: Vector, objectives: Sequence[int]) -> float:
        """Return the same number over some of the objectives only; over all if ``objectives`` is empty."""
        among = list(objectives) or list(range(len(self.weights)))
        scaled, weights = self.scaled(values)[among], self.weights[among]
        mean = float(scaled @ weights / weights.sum())
        match self.aim:
            case Chebyshev():
                shortest = 1.0 - float((weights / weights.max() * (1.0 - scaled)).max())
                return (shortest + AUGMENTATION * mean) / (1.0 + AUGMENTATION)
            case Constraint(limits=limits):
                bounds = np.array(limits)
                least = self.scaled(np.where(np.isfinite(bounds), bounds, values))[among]
                missed = np.maximum(least - scaled, 0.0).sum()
                if missed > 0.0:
                    return -1.0 - float(missed)
                return mean if mean >= 0.0 else mean / (1.0 - mean)  # above -1, where the others begin
        return mean


def nudge(tie_break: float) -> float:
    """Return a number within `TIE_BREAK_SHARE` of 0 that grows with ``tie_break``, to be added to a value."""
    return TIE_BREAK_SHARE * tie_break / (1.0 + abs(tie_break))


def ranked_values(observations: list[Observation], preference: Preference) -> list[float]:
    """Return one number per observation, more is better.

    Estimates come behind every point that was measured in full, in their own order: racing stopped them because they
    are worse than the best with high probability, which the others were not shown to be. Failures come last.

    Raises:
        ValueError: every observation is a failure, so there is nothing to learn from.
    """
    numbers = [-np.inf if o.values is None else preference.scalar(o.values, o.tie_break) for o in observations]
    estimated = [o.estimated and o.values is not None for o in observations]
    full = [n for n, e in zip(numbers, estimated, strict=True) if not e and n > -np.inf]
    estimates = [n for n, e in zip(numbers, estimated, strict=True) if e]
    if not full and not estimates:
        raise ValueError("all observations failed")
    if full and estimates:
        lowered = max(max(estimates) - min(full) + BEHIND, 0.0)
        numbers = [n - lowered if e else n for n, e in zip(numbers, estimated, strict=True)]
    worst = min(n for n in numbers if n > -np.inf)
    return [worst - 1.0 if n == -np.inf else n for n in numbers]
