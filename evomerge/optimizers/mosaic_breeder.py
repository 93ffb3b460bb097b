"""Children in the space of mosaics."""

from __future__ import annotations

import numpy as np

from evomerge.optimizers.breeding import Offspring
from search_spaces.genes import Genome
from search_spaces.mosaic import Mosaic, MosaicAlgebra


class MosaicBreeder:
    """Split-point SLERP of coefficient tables; see `search_spaces.mosaic`."""

    def __init__(self, algebra: MosaicAlgebra, *, split: bool = True) -> None:
        """``split``: whether each chromosome has a split point, else one ratio for all of it."""
        self._algebra = algebra
        self._split = split

    def found(self, rng: np.random.Generator) -> Offspring:
        """Return a child of two experts."""
        founders = self._algebra.founders
        one, other = rng.choice(len(founders), size=2, replace=False).tolist()
        pair = (founders[one], founders[other])
        return Offspring(self.cross(*pair, rng), pair)

    def cross(self, one: Genome, other: Genome, rng: np.random.Generator) -> Genome:
        """Return a child of two mosaics.

        Raises:
            TypeError: a parent is none.
        """
        if not (isinstance(one, Mosaic) and isinstance(other, Mosaic)):
            raise TypeError(f"mosaics are crossed with mosaics, got {type(one).__name__} and {type(other).__name__}")
        return self._algebra.cross(one, other, rng, split=self._split)
