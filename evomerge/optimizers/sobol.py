"""Sobol search: points of a scrambled Sobol sequence (Sobol 1967; Owen 1998). A baseline that covers the space evenly.

The first 2^k points leave no gap that independent points would: in every elementary interval of volume 2^-k lies
about one of them (scipy.stats.qmc.Sobol with Owen's scrambling, which the seed draws).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import qmc  # type: ignore[import-untyped]

from evomerge.optimizers.contract import Observation
from search_spaces.genes import Genes, Genome

BLOCK = 64  # points drawn at a time; a power of two keeps the sequence balanced


class SobolSearch:
    """Evenly spread inside the bounds; learns nothing."""

    def __init__(self, genes: Genes, *, seed: int) -> None:
        """``seed`` draws the scrambling.

        Raises:
            ValueError: more genes than the sequence has dimensions (21,201).
        """
        if len(genes) > qmc.Sobol.MAXDIM:
            raise ValueError(
                f"optimizer sobol has at most {qmc.Sobol.MAXDIM} dimensions, the space has {len(genes)} genes; "
                "use fewer groups, or optimizer random"
            )
        self._genes = genes
        self._sequence = qmc.Sobol(len(genes), scramble=True, rng=np.random.default_rng(seed))
        self._drawn: list[Genome] = []

    def ask(self, count: int) -> list[Genome]:
        """Return the next ``count`` points of the sequence, inside the bounds."""
        while len(self._drawn) < count:
            self._drawn += [Genome(point) for point in self._genes.from_unit(self._sequence.random(BLOCK))]
        asked, self._drawn = self._drawn[:count], self._drawn[count:]
        return asked

    def tell(self, observations: Sequence[Observation]) -> None:
        """Ignore ``observations``: the sequence does not depend on them."""
