"""What the points that have come back let expect of others: the values of a search under a Gaussian process."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.contract import Observation
from evomerge.optimizers.gaussian_process import GaussianProcess
from evomerge.optimizers.preference import Preference
from search_spaces.genes import Vector

FEWEST = 16  # points; before, a process knows next to nothing
MOST = 200  # the latest; the cost of a fit grows with their cube, and a search that moves on has left the others
TUNE_EVERY = 1.1  # times as many points as at the last look for better scales


class Foresight:
    """Follows a search; a failure counts as the worst value so far, so that others keep away from where it was."""

    def __init__(self, groups: npt.NDArray[np.intp], preference: Preference) -> None:
        """``groups``: (dim,) number of each gene's group; ``preference``: the number that is wanted, of all objectives;
        whoever made it shows it the seeds."""
        self._preference = preference
        self._process = GaussianProcess(groups)
        self._known: deque[tuple[Vector, Observation]] = deque(maxlen=MOST)
        self._values: deque[float] = deque(maxlen=MOST)  # of these; not a number where it failed
        self._fresh = False
        self._seen, self._tuned_at = 0, 0

    @property
    def ready(self) -> bool:
        """Whether enough points succeeded for anything to be expected."""
        return int(np.isfinite(self._values).sum()) >= FEWEST

    def see(self, unit: Vector, observation: Observation) -> None:
        """Take in what became of (dim,) ``unit``, a point of the unit cube; of a seed after the preference has."""
        self._known.append((unit, observation))
        if observation.seed:  # it may have changed the scales
            self._values = deque((self._value(o) for _, o in self._known), maxlen=MOST)
        else:
            self._values.append(self._value(observation))
        self._fresh = True
        self._seen += 1

    def expected(self, units: Vector) -> Vector:
        """Return the (points,) values expected of (points, dim) ``units``, more is better."""
        if self._fresh:
            self._learn()
        return self._process.predict(units)

    def _learn(self) -> None:
        values = np.array(self._values)
        values = np.where(np.isnan(values), np.nanmin(values), values)
        tune = self._seen >= TUNE_EVERY * self._tuned_at
        self._process.fit(np.stack([unit for unit, _ in self._known]), values, tune=tune)
        self._tuned_at = self._seen if tune else self._tuned_at
        self._fresh = False

    def _value(self, observation: Observation) -> float:
        if observation.values is None:
            return float("nan")
        return self._preference.scalar(observation.values, observation.tie_break)
