"""Random search: independent uniform genomes. The baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.optimizers.contract import Observation
from search_spaces.genes import Genes, Genome


class RandomSearch:
    """Uniform inside the bounds, and over the choices of genes that have them; learns nothing."""

    def __init__(self, genes: Genes, *, seed: int) -> None:
        self._genes = genes
        self._rng = np.random.default_rng(seed)

    def ask(self, count: int) -> list[Genome]:
        """Return ``count`` genomes inside the bounds."""
        dim = len(self._genes)
        return [Genome(self._genes.from_unit(self._rng.random(dim))) for _ in range(count)]

    def tell(self, observations: Sequence[Observation]) -> None:
        """Ignore ``observations``: uniform sampling does not depend on them."""
