"""Groups of genes that begin correlated: the map is the square root of the covariance that it stands for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.optimizers.correlated import Correlated

groups = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(
    lambda found: np.unique(found, return_inverse=True)[1]
)
correlations = st.floats(0.0, 0.95)


@given(groups, correlations)
def test_there_and_back(of_genes, correlation):
    correlated, point = Correlated(of_genes, correlation), np.linspace(-1.0, 2.0, len(of_genes))
    assert correlated.to_coordinates(correlated.from_coordinates(point)) == pytest.approx(point)


@given(groups, correlations)
def test_standard_normal_coordinates_have_the_covariance(of_genes, correlation):
    correlated = Correlated(of_genes, correlation)
    root = np.stack([correlated.from_coordinates(one) for one in np.eye(len(of_genes))], axis=1)
    same = of_genes[:, None] == of_genes[None, :]
    expected = np.where(same, correlation, 0.0) + (1.0 - correlation) * np.eye(len(of_genes))
    assert root @ root.T == pytest.approx(expected)
