"""CMA-ES (Hansen 2016), asynchronous: the one adapter of pycma.

Genes are scaled to the unit cube, so one step size fits all, and bounds are handled by transformation (`bounds.py`).
Points come back one at a time, in whatever order, and the distribution moves whenever a population's worth of them has
come back; a point that was out for longer than a few of these moves tells it nothing. It starts at the best seed that
the space can express. When pycma's own criteria say that a run has converged, a new one starts from a fresh point with
twice the population (Auger and Hansen 2005); points that an earlier run proposed are not told to it. Where points see
few documents (`centres`), the middle of the distribution is asked for now and then, when it has moved: an average of
many noisy choices is better than what looks best among them.

On request, genes of one group begin correlated (`correlated.py`), and of the points that are drawn only the most
promising are proposed, as a Gaussian process of what came back sees them (`foresight.py`): pre-selection (Ulmer,
Streichert and Zell 2003).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.optimizers.bounds import from_unit_cube, to_unit_cube
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.correlated import Correlated
from evomerge.optimizers.foresight import Foresight
from evomerge.optimizers.preference import WEIGHTED_MEAN, Aim, Preference, ranked_values
from search_spaces.genes import Genes, Genome, Vector

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pycma tells everybody without matplotlib that it cannot plot
    import cma

DIAGONAL_FROM = 100  # genes; see docs/optimizers.md: below genes^2 evaluations a full matrix is not learnt
MOST_MOVES = 4  # of the distribution while a point was out; an older one is not learnt from, see docs/optimizers.md
NOISY = 1.5  # a larger population averages over more of the noise of few documents
SMOOTH = 0.7  # without noise a smaller one moves more often
EDGE = 0.02  # share of the range that a start keeps from the bounds, where half of the first samples would be lost


class CmaEs:
    """One CMA-ES run after another; see the module's text."""

    single_number = True

    def __init__(
        self,
        genes: Genes,
        *,
        weights: Vector,
        seed: int,
        aim: Aim = WEIGHTED_MEAN,
        sigma: float = 0.1,
        population: int | None = None,
        separable: bool | None = None,
        correlation: float = 0.0,
        preselect: int = 1,
        centres: int = 0,
        noisy: bool = False,
    ) -> None:
        """Make one.

        Args:
            aim: which number of the objectives is climbed.
            sigma: first step size as a share of each gene's range.
            population: pycma's 4 + 3 ln(genes) if None, half as many again if ``noisy``, else fewer with ``centres``;
                4 + 1.5 ln(genes) with preselection.
            separable: learn a scale for each gene but no correlations; from 100 genes on if None.
            correlation: between the genes of one group at the start.
            preselect: points drawn for each one that is proposed; 1: all that are drawn are.
            centres: points after which the middle of the distribution is asked for, too, if it has moved; 0: never.
                Nothing is learnt from it.
            noisy: points are compared on few documents.
        """
        self._low, self._high = genes.low, genes.high
        self._range = self._high - self._low
        self._correlated = Correlated(genes.groups, correlation)
        self._start = self._unit(genes.start)
        self._preference = Preference(weights, aim)
        self._rng = np.random.default_rng(seed)
        self._sigma = sigma
        default = int((4 + int(3 * np.log(len(genes)))) * (NOISY if noisy else SMOOTH if centres else 1.0))
        self._population = population or (4 + int(1.5 * np.log(len(genes))) if preselect > 1 else default)
        self._separable = len(genes) >= DIAGONAL_FROM if separable is None else separable
        self._best_seed: tuple[float, Vector] | None = None
        self._run: Any = None
        self._drawn: list[Genome] = []  # nobody has asked for them yet
        self._drawn_for_one = preselect
        self._foresight = Foresight(genes.groups, self._preference) if preselect > 1 else None
        self._out: dict[Genome, int] = {}  # points that are not back, and how many moves came before each
        self._moves = self._run_began = 0
        self._centres = centres
        self._centred_at = 0  # moves before the last middle; the first is a seed, known already
        self._asked = 0  # points since the last middle
        self._returned: list[Observation] = []

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds."""
        if self._run is None:
            self._run = self._new_run(self._best_seed[1] if self._best_seed else self._start)
        middle = []
        if count and self._centres and self._centred_at < self._moves and self._asked >= self._centres:
            self._centred_at, self._asked = self._moves, 0
            middle = [self._genome(self._run.mean)]
        drawn = count - len(middle)
        self._asked += drawn
        while len(self._drawn) < drawn:
            self._draw()
        asked, self._drawn = self._drawn[:drawn], self._drawn[drawn:]
        self._out.update(dict.fromkeys(asked, self._moves))
        return middle + asked

    def generation_of(self, genome: Genome) -> int | None:
        """Return how often the distribution had moved when ``genome`` was drawn; None for a middle, or once told."""
        return self._out.get(genome)

    def tell(self, observations: Sequence[Observation]) -> None:
        """Take in what came back; the distribution moves once a population's worth is there."""
        for observation in observations:
            if observation.seed:
                self._see_seed(observation)
            elif observation.genome is not None:
                asked_at = self._out.pop(observation.genome, -np.inf)
                if asked_at >= self._run_began and self._moves - asked_at <= MOST_MOVES:
                    self._returned.append(observation)
            if self._foresight and observation.genome is not None:
                self._foresight.see(self._unit(observation.genome.values), observation)
        self._move()

    def _see_seed(self, observation: Observation) -> None:
        if observation.values is None:
            return
        self._preference.see_seed(observation.values)
        if observation.genome is not None:
            value = float(observation.values @ self._preference.weights)
            if self._best_seed is None or value > self._best_seed[0]:
                self._best_seed = (value, self._unit(observation.genome.values))

    def _move(self) -> None:
        """Update the distribution. With half of a population failed it waits for more points instead of learning
        from the order of failures."""
        run, returned = self._run, self._returned
        if run is None or len(returned) < run.popsize:
            return
        if sum(o.values is not None for o in returned) < max(run.sp.weights.mu, 2):
            return
        points = [self._point(o.genome) for o in returned if o.genome is not None]
        values = ranked_values(returned, self._preference)
        self._returned, self._moves = [], self._moves + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycma remarks on points that it did not send in this iteration
            run.tell(points, [-value for value in values])  # pycma minimises
        if run.stop():
            self._population *= 2
            self._run_began = self._moves
            self._run = self._new_run(self._rng.uniform(EDGE, 1.0 - EDGE, len(self._low)))
        self._drawn = []  # what is drawn but not asked for belongs to the old distribution
        self._draw()  # now: pycma takes no second population before it was asked again, and many workers bring one

    def _draw(self) -> None:
        # Whole populations at a time: pycma puts its injected directions into the first points of each call,
        # and refuses to go on when calls for single points leave some of them over.
        run = self._run
        if self._foresight is None or not self._foresight.ready:
            self._drawn += [self._genome(place) for place in run.ask()]
            return
        places = run.ask(self._drawn_for_one * run.popsize)
        found = self._foresight.expected(np.stack([self._unit_of(place) for place in places]))
        self._drawn += [self._genome(places[i]) for i in np.argsort(-found, kind="stable")[: run.popsize]]

    def _new_run(self, start: Vector) -> Any:
        # An own generator instead of pycma's, which seeds NumPy's global one. The flat-fitness criteria are off:
        # accuracies repeat exactly, and the defaults would end a run after one generation.
        options = {
            "seed": np.nan,
            "randn": self._standard_normal,
            "popsize": self._population,
            "CMA_diagonal": self._separable,
            "tolfun": 0,
            "tolfunhist": 0,
            "tolflatfitness": 50,
            "verbose": -9,
            "verb_log": 0,
            "verb_disp": 0,
        }
        first = self._place(np.clip(start, EDGE, 1.0 - EDGE))
        return cma.CMAEvolutionStrategy(first, self._sigma, options)

    def _standard_normal(self, *shape: int) -> Any:
        return self._rng.standard_normal(shape)

    def _unit(self, values: Vector) -> Vector:
        return np.asarray((values - self._low) / self._range)

    def _point(self, genome: Genome) -> Vector:
        """The point of R^n to learn from: the one next to the cube, not the mirror image that was drawn. Learning from
        mirror images left 1.6 and 2.8 times the gap after 200 and 500 evaluations (docs/optimizers.md)."""
        return self._place(self._unit(genome.values))

    def _place(self, unit: Vector) -> Vector:
        """The coordinates that stand for a point of the unit cube."""
        place = self._correlated.to_coordinates(from_unit_cube(unit))
        return np.append(place, 0.5) if len(place) == 1 else place  # pycma refuses one dimension: a second is carried

    def _unit_of(self, place: Vector) -> Vector:
        """The point of the unit cube that coordinates stand for."""
        return to_unit_cube(self._correlated.from_coordinates(place[: len(self._low)]))

    def _genome(self, place: Vector) -> Genome:
        values = self._low + self._unit_of(place) * self._range
        return Genome(np.clip(values, self._low, self._high))  # rounding may step over a bound by one unit
