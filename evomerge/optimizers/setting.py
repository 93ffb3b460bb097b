"""What every optimizer is told of a search."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.optimizers.preference import WEIGHTED_MEAN, Aim, Preference
from search_spaces.genes import Genes, Vector
from search_spaces.mosaic import MosaicAlgebra


@dataclass(frozen=True)
class Setting:
    """What an optimizer is told of the search when it is made.

    Attributes:
        weights: (objectives,) importance of each objective.
        evaluations: the budget.
        aim: what the optimizers of a single number maximise.
        mosaics: where mosaics are searched, what crosses them; the genes then only describe them.
        centres: points after which the middle of the optimizer's distribution is asked for, too; 0: it never is.
        noisy: whether points of one generation are compared on few documents.
    """

    genes: Genes
    weights: Vector
    evaluations: int
    aim: Aim = WEIGHTED_MEAN
    mosaics: MosaicAlgebra | None = None
    centres: int = 0
    noisy: bool = False

    def preference(self) -> Preference:
        """Return the number to maximise, which has seen no seed yet."""
        return Preference(self.weights, self.aim)
