"""Two-stage sparse search for pools of dozens of experts: densities first, then weights with a penalty on their size.

After Evo-Merging (arXiv 2509.12951), with which experts are selected as by-product of the search:

1. CMA-ES on the densities, every weight being 1/experts: what each expert may keep without disturbing the others.
2. CMA-ES on the weights, which may be negative where the bounds allow it, at the best densities of the first stage.
   It maximises ``f(w) - penalty * mean |w_i|``: weights of experts that contribute nothing go to 0.

The penalty lives in here; reported scores know nothing of it. Each stage searches half of the genes, which is why it
needs fewer evaluations than one search over all of them. Genes that are neither densities nor weights keep their start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.preference import Preference
from search_spaces.genes import Genes, Genome, Vector

GENERATIONS = 5  # of the first stage; the paper has 20 to 40, which cost more than they gave (docs/optimizers.md)
PENALTY = 0.01


class TwoStage:
    """Densities, then weights; see the module's text."""

    def __init__(
        self, genes: Genes, *, weights: Vector, seed: int, first_stage: int | None = None, penalty: float = PENALTY
    ) -> None:
        """Make one.

        Args:
            weights: (objectives,) importance of each objective.
            first_stage: evaluations of the first stage; 5 default populations of CMA-ES if None.
            penalty: what a mean weight of 1 costs, in units of the joint score.

        Raises:
            ValueError: the space lacks genes for densities or for weights.
        """
        self._densities, self._weights = _columns(genes, "density"), _columns(genes, "weight")
        self._genes, self._seed, self._penalty = genes, seed, penalty
        self._preference = Preference(weights)
        self._others = genes.start.copy()  # what the stage does not search
        experts = {genes.names[i].split("/")[1] for i in self._weights}
        self._others[self._weights] = np.clip(1.0 / len(experts), genes.low, genes.high)[self._weights]
        self._left = first_stage or GENERATIONS * (4 + int(3 * np.log(len(self._densities))))
        self._best: tuple[float, Vector] | None = None  # of the first stage
        self._searched = self._densities
        self._search = self._new_search()

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds."""
        return [self._whole(genome) for genome in self._search.ask(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Take in what came back; the second stage begins when the first has had its evaluations."""
        for observation in observations:
            if observation.seed:
                if observation.values is not None:
                    self._preference.see_seed(observation.values)
            elif observation.genome is not None:
                self._take(observation, observation.genome)

    def _take(self, observation: Observation, genome: Genome) -> None:
        number = self._number(observation, genome.values)
        part = Genome(genome.values[self._searched])
        if self._whole(part) != genome:
            return  # of the first stage, and late: it has other weights than this stage searches at its densities
        self._search.tell([replace(observation, genome=part, values=None if number is None else np.array([number]))])
        if self._searched is self._weights:
            return
        self._left -= 1
        if number is not None and not observation.estimated and (self._best is None or number > self._best[0]):
            self._best = (number, genome.values)
        if self._left <= 0 and self._best is not None:
            self._others = self._best[1].copy()
            self._searched = self._weights
            self._search = self._new_search()

    def _number(self, observation: Observation, values: Vector) -> float | None:
        """The joint score, in the second stage without what the weights cost."""
        if observation.values is None:
            return None
        number = self._preference.scalar(observation.values)
        if self._searched is self._weights:
            number -= self._penalty * float(np.abs(values[self._weights]).mean())
        return number

    def _new_search(self) -> CmaEs:
        chosen = [replace(self._genes.genes[i], start=float(self._others[i])) for i in self._searched]
        stage = int(self._searched is self._weights)
        seed = int(np.random.default_rng([self._seed, stage]).integers(2**63))
        return CmaEs(Genes(tuple(chosen)), weights=np.ones(1), seed=seed)

    def _whole(self, part: Genome) -> Genome:
        values = self._others.copy()
        values[self._searched] = part.values
        return Genome(values)


def _columns(genes: Genes, knob: str) -> npt.NDArray[np.intp]:
    """Positions of the genes of one knob, whose name is the first part of theirs."""
    found = np.flatnonzero([name.split("/")[0] == knob for name in genes.names])
    if len(found) == 0:
        known = ", ".join(sorted({name.split("/")[0] for name in genes.names}))
        raise ValueError(
            f"optimizer two_stage needs genes for densities and weights, the space has genes for {known}; "
            "use an operator with both (ties, dare_linear, dare_ties, ...), or optimizer cma_es"
        )
    return found
