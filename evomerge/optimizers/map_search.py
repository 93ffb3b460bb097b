"""MAP (Li et al. 2024, arXiv 2406.07529): Pareto fronts by quadratic surrogates, every returned point evaluated.

A design of points is evaluated first. Then each objective gets a quadratic surrogate, NSGA-III finds the front that the
surrogates predict, and the points of it that add the most hypervolume are evaluated for real, in small batches; what
comes back refits the surrogates. Predictions choose what to evaluate and are never told as results.

Where an objective's surrogate predicts its left-out points badly (R^2 below `FEWEST_R_SQUARED`), its front is not
worth an evaluation: the even design goes on instead until it is. Points are scaled to the unit cube, and none is
proposed outside: a quadratic extrapolates badly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from evomerge.optimizers.contract import Observation
from evomerge.optimizers.novelty import Proposed
from evomerge.optimizers.sobol import SobolSearch
from evomerge.optimizers.surrogate import Matrix, coefficients
from evomerge.optimizers.surrogate_front import Surrogates, predicted_front, promising
from search_spaces.genes import Genes, Genome, Vector

FEWEST_R_SQUARED = 0.5
DESIGN_SHARE = 1.5  # points of the design for every coefficient
BACK_SHARE = 2 / 3  # of the design that must be back before anything is fitted
NEAR = 0.01  # share of each gene's range within which a point tells nothing new
ISOTROPIC = (0.3, 0.6, 0.9)


class MapSearch:
    """See the module's text."""

    def __init__(self, genes: Genes, *, seed: int, design: int | None = None, batch: int | None = None) -> None:
        """``design``: points evaluated before the first fit, 1.5 for every coefficient if None; ``batch``: points
        chosen from one fit, half as many as genes if None."""
        self._genes = genes
        self._design_size = design or int(np.ceil(DESIGN_SHARE * coefficients(len(genes))))
        self._batch = batch or max(1, len(genes) // 2)
        self._rng = np.random.default_rng(seed)
        self._even = SobolSearch(genes, seed=seed)
        self._design = self._make_design()
        self._proposed = Proposed()
        self._out: dict[Genome, None] = {}  # asked for and not back, in order
        self._known: dict[Genome, Vector] = {}  # measured, in order
        self._measured: set[Genome] = set()  # those whose values are no estimates
        self._surrogates: Surrogates | None = None
        self._fitted_to: Matrix = np.zeros((0, len(genes)))  # the points, in the unit cube
        self._next: list[Genome] = []

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds, none of which was asked for or given before."""
        return [self._propose() for _ in range(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Take in what came back; failures only stay known."""
        for observation in observations:
            genome = observation.genome
            if genome is None:
                continue
            self._out.pop(genome, None)
            self._proposed.add(genome)
            if observation.values is not None:
                self._known[genome] = np.asarray(observation.values, dtype=np.float64)
                if not observation.estimated:
                    self._measured.add(genome)

    @property
    def r_squared(self) -> Vector | None:
        """(objectives,) leave-one-out R^2 of the present surrogates; None before the first."""
        return None if self._surrogates is None else self._surrogates.r_squared

    def _propose(self) -> Genome:
        genome = self._from_design() or self._from_surrogates() or self._from_even()
        self._proposed.add(genome)
        self._out[genome] = None
        return genome

    # ------------------------------------------------ the design

    def _make_design(self) -> Iterator[Genome]:
        """Yield even points, then the anchors: by then the search's seeds, which many anchors equal, are back."""
        anchors = self._anchors()
        yield from self._even.ask(max(self._design_size - len(anchors), 0))
        yield from anchors[: self._design_size]

    def _anchors(self) -> list[Genome]:
        """One expert each, the middle of the box, and all experts alike."""
        low, high = self._genes.low, self._genes.high
        alone, alike = np.eye(len(self._genes)), np.ones(len(self._genes))
        points = [*alone, *(share * alike for share in ISOTROPIC), (low + high) / 2.0]
        return list(dict.fromkeys(Genome(np.clip(point, low, high)) for point in points))

    def _from_design(self) -> Genome | None:
        return next((genome for genome in self._design if genome not in self._proposed), None)

    def _from_even(self) -> Genome:
        return self._proposed.first_new(self._even)

    # ------------------------------------------------ the surrogates

    def _from_surrogates(self) -> Genome | None:
        """Return the next point of the batch, or None where the surrogates are missing or too poor."""
        self._next = [genome for genome in self._next if genome not in self._proposed]
        if not self._next:
            self._refit()
            if self._surrogates is None or self._surrogates.r_squared.min() < FEWEST_R_SQUARED:
                return None
            self._next = self._choose(self._surrogates)
        return self._next.pop(0) if self._next else None

    def _refit(self) -> None:
        enough = max(len(self._genes) + 2, int(BACK_SHARE * self._design_size))
        if len(self._known) < enough or len(self._known) == len(self._fitted_to):
            return
        self._fitted_to = self._unit(list(self._known))
        self._surrogates = Surrogates.fitted(self._fitted_to, np.array(list(self._known.values())))

    def _choose(self, surrogates: Surrogates) -> list[Genome]:
        known = list(self._known)
        front = predicted_front(surrogates, self._unit(known), self._rng)
        pending = self._unit(list(self._out))
        fresh = front[_distances(front, np.vstack([self._unit(known), pending])) > NEAR]
        if len(fresh) == 0:
            return []
        measured = [genome for genome in known if genome in self._measured] or known
        chosen = promising(
            surrogates,
            fresh,
            there=np.vstack([self._unit(measured), pending]),
            count=self._batch,
        )
        return [self._genome(point) for point in chosen]

    def _unit(self, genomes: Sequence[Genome]) -> Matrix:
        values = np.array([genome.values for genome in genomes]).reshape(len(genomes), len(self._genes))
        return np.asarray((values - self._genes.low) / (self._genes.high - self._genes.low))

    def _genome(self, unit: Vector) -> Genome:
        low, high = self._genes.low, self._genes.high
        return Genome(np.clip(low + unit * (high - low), low, high))


def _distances(points: Matrix, others: Matrix) -> Vector:
    """Return (points,) distances to the nearest of ``others``, by the gene that differs most."""
    return np.asarray(np.abs(points[:, None] - others[None]).max(axis=2).min(axis=1))
