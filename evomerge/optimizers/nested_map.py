"""Nested MAP (Li et al. 2024, arXiv 2406.07529): many models, merged two at a time.

Genes are coefficients of models: each model alone is measured first. Then, while there are two, the two whose numbers
are nearest are merged: two coefficients are searched with a quadratic surrogate, and the best merge, or the better one
alone, takes the place of both. N models take N - 1 merges, so the evaluations grow with N and not with its square; the
price is that one preference is fixed in advance and no front is found. What is maximised while two models are merged is
the preference over the objectives that either was made for: an objective belongs to the model that is best at it alone,
and a merge inherits those of both. The last merge goes on until the budget ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.optimizers.contract import Observation
from evomerge.optimizers.map_search import MapSearch
from evomerge.optimizers.novelty import Proposed
from evomerge.optimizers.preference import Preference, nudge
from evomerge.optimizers.sobol import SobolSearch
from search_spaces.genes import Gene, Genes, Genome, Vector

HIGHEST = 1.2  # coefficient of a model in a merge of two
PAIR_DESIGN = 7  # points of a merge before the first fit, of which two models alone may be known


@dataclass
class _Model:
    """A direction in gene space: its (genes,) coefficients, its objectives and the values it was measured with."""

    coefficients: Vector
    owned: frozenset[int]
    values: Vector | None


class _Pair:
    """The search for the best merge of two models."""

    def __init__(self, models: tuple[_Model, _Model], genes: Genes, seed: int) -> None:
        self.models = models
        self.owned = models[0].owned | models[1].owned
        highest = [_room(model.coefficients, genes) for model in models]
        pair = Genes(tuple(Gene(f"model {i}", 0.0, high, high / 2) for i, high in enumerate(highest)))
        self.search = MapSearch(pair, seed=seed, design=PAIR_DESIGN, batch=2)
        self.out: dict[Genome, Genome] = {}  # from genomes of the whole space to those of the pair
        self.back = 0
        self.best: tuple[float, Genome, Vector] | None = None

    def offer(self, number: float, genome: Genome, values: Vector) -> None:
        """Keep a measured genome of the whole space if its ``number`` is the best so far."""
        if self.best is None or number > self.best[0]:
            self.best = (number, genome, values)

    def coefficients(self, genome: Genome) -> Vector:
        """Return the (genes,) of the whole space that two coefficients stand for."""
        return np.asarray(sum(c * model.coefficients for c, model in zip(genome.values, self.models, strict=True)))


class NestedMap:
    """See the module's text."""

    def __init__(self, genes: Genes, *, preference: Preference, seed: int, evaluations_per_pair: int = 12) -> None:
        """``evaluations_per_pair``: evaluations that each merge of two takes."""
        self._genes = genes
        self._preference = preference
        self._rng = np.random.default_rng(seed)
        self._even = SobolSearch(genes, seed=seed)
        self._per_pair = evaluations_per_pair
        self._proposed = Proposed()
        self._alone = [Genome(row) for row in np.eye(len(genes))]
        self._values: dict[Genome, Vector | None] = {}  # of each model alone; None where it failed
        self._models: list[_Model] = []
        self._pair: _Pair | None = None

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds, none of which was asked for or given before."""
        return [self._propose() for _ in range(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Take in what came back; a merge ends when all its evaluations have."""
        for observation in observations:
            if observation.seed and observation.values is not None:
                self._preference.see_seed(observation.values)
            if observation.genome is None:
                continue
            self._proposed.add(observation.genome)
            if observation.genome in self._alone and observation.values is not None:
                self._values[observation.genome] = observation.values
            elif observation.genome in self._alone:
                self._values.setdefault(observation.genome, None)
            self._tell_pair(observation)
        self._go_on()

    def _propose(self) -> Genome:
        genome = next((g for g in self._alone if g not in self._proposed), None)
        if genome is None and self._pair is not None:
            genome = self._from_pair(self._pair)
        if genome is None:  # the models alone are out, or every merge of the pair has been tried
            genome = self._proposed.first_new(self._even)
        self._proposed.add(genome)
        return genome

    def _from_pair(self, pair: _Pair) -> Genome | None:
        inner = pair.search.ask(1)[0]
        genome = Genome(self._genes.nearest(pair.coefficients(inner)))
        if genome in self._proposed:
            pair.search.tell([Observation(inner, None)])
            return None
        pair.out[genome] = inner
        return genome

    def _tell_pair(self, observation: Observation) -> None:
        pair = self._pair
        if pair is None or observation.genome is None or observation.genome not in pair.out:
            return
        inner = pair.out.pop(observation.genome)
        pair.back += 1
        if observation.values is None:
            pair.search.tell([Observation(inner, None)])
            return
        number = self._number(observation.values, pair.owned) + nudge(observation.tie_break)
        pair.search.tell([Observation(inner, np.array([number]), estimated=observation.estimated)])
        if not observation.estimated:
            pair.offer(number, observation.genome, observation.values)

    # ------------------------------------------------ the tree of merges

    def _go_on(self) -> None:
        """Begin the first merge when every model alone is back, and the next one when a merge is done."""
        if self._pair is None:
            if len(self._values) < len(self._alone):
                return
            self._models = self._first_models()
            self._next_pair()
        elif self._models and self._pair.back >= self._per_pair:
            self._models.append(self._merged(self._pair))
            self._next_pair()

    def _first_models(self) -> list[_Model]:
        values = [self._values[genome] for genome in self._alone]
        known = [i for i, each in enumerate(values) if each is not None]
        owned: dict[int, set[int]] = {i: set() for i in range(len(values))}
        for objective in range(len(self._preference.weights)):
            if known:
                owned[max(known, key=lambda i: float(values[i][objective]))].add(objective)  # type: ignore[index]
        rows = zip(np.eye(len(values)), owned.values(), values, strict=True)
        models = [_Model(row, frozenset(objectives), each) for row, objectives, each in rows]
        return models if len(models) > 1 else [*models, _Model(np.zeros(1), frozenset(), None)]

    def _next_pair(self) -> None:
        """Merge the two models whose numbers are nearest; those that failed alone come last."""
        every = frozenset(range(len(self._preference.weights)))
        numbers = [np.inf if m.values is None else self._number(m.values, every) for m in self._models]
        order = sorted(range(len(numbers)), key=lambda i: (numbers[i], i))
        neighbours = zip(order, order[1:], strict=False)
        gaps = [numbers[b] - numbers[a] if np.isfinite(numbers[b]) else np.inf for a, b in neighbours]
        place = int(np.argmin(gaps))
        first, second = order[place], order[place + 1]
        models = (self._models[first], self._models[second])
        self._models = [m for i, m in enumerate(self._models) if i not in (first, second)]
        self._pair = _Pair(models, self._genes, int(self._rng.integers(2**63)))
        for model, alone in zip(models, np.eye(2), strict=True):  # what both are alone is known
            if model.values is not None:
                number = self._number(model.values, self._pair.owned)
                self._pair.search.tell([Observation(Genome(alone), np.array([number]), seed=True)])
                self._pair.offer(number, Genome(model.coefficients), model.values)

    def _merged(self, pair: _Pair) -> _Model:
        if pair.best is None:  # nothing of it could be measured
            return _Model(pair.coefficients(Genome([0.5, 0.5])), pair.owned, None)
        return _Model(pair.best[1].values, pair.owned, pair.best[2])

    def _number(self, values: Vector, owned: frozenset[int]) -> float:
        """The preference over the ``owned`` objectives, over all where there are none."""
        return self._preference.over(values, sorted(owned))


def _room(coefficients: Vector, genes: Genes) -> float:
    """The largest factor, at most `HIGHEST`, that keeps ``coefficients`` inside the bounds; two models of a merge
    have no gene in common."""
    positive = coefficients > 0.0
    if not positive.any():
        return HIGHEST
    return float(min(HIGHEST, (genes.high[positive] / coefficients[positive]).min()))
