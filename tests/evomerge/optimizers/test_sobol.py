"""Sobol search: even coverage, whatever the size of the asks."""

import numpy as np
import pytest

from evomerge.optimizers.sobol import SobolSearch
from search_spaces.genes import Gene, Genes


def genes(count):
    return Genes(tuple(Gene(f"g{i}", -1.0, 3.0, 0.0) for i in range(count)))


def test_every_cell_of_a_grid_gets_its_share():
    points = np.array([genome.values for genome in SobolSearch(genes(2), seed=0).ask(64)])
    cells = np.floor((points + 1.0) / 4.0 * 8).astype(int)
    assert len(set(map(tuple, cells))) == 64  # 64 points of a (0, 2)-sequence, one in each of 8 x 8 cells


def test_size_of_asks_does_not_matter():
    at_once, single = SobolSearch(genes(3), seed=5), SobolSearch(genes(3), seed=5)
    assert at_once.ask(100) == [single.ask(1)[0] for _ in range(100)]


def test_more_genes_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="at most 21201 dimensions, the space has 21202 genes"):
        SobolSearch(genes(21202), seed=0)
