"""Random search: independent uniform genomes. The baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.optimizers.contract import Observation
from search_spaces.genes import Genes, Genome


class RandomSearch:
    """Uniform inside the bounds; learns nothing."""

    def __init__(self, genes: Genes, *, seed: int) -> None:
        self._genes = genes
        self._rng = np.random.default_rng(seed)

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds."""
        low, high = self._genes.low, self._genes.high
        return [Genome(self._rng.uniform(low, high)) for _ in range(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Ignore ``observations``: uniform sampling does not depend on them."""
