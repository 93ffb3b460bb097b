"""Genes of whole numbers beside real ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.genes import Gene, Genes, Genome

GENES = Genes((Gene("w", -1.0, 2.0, 0.0), Gene.integer("n", 2, 6, 3), Gene.categorical("c", 3)))


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3))
def test_any_point_of_the_unit_cube_is_a_genome(unit):
    assert GENES.contains(Genome(GENES.from_unit(np.array(unit))))


def test_every_whole_number_gets_an_equal_share():
    values = GENES.from_unit(np.random.default_rng(0).random((9000, 3)))
    assert np.unique(values[:, 1], return_counts=True)[1] == pytest.approx([1800] * 5, rel=0.1)
    assert np.unique(values[:, 2], return_counts=True)[1] == pytest.approx([3000] * 3, rel=0.1)


@given(st.lists(st.floats(-9.0, 9.0), min_size=3, max_size=3))
def test_nearest_is_inside_and_leaves_genomes_alone(values):
    near = GENES.nearest(np.array(values))
    assert GENES.contains(Genome(near))
    assert (GENES.nearest(near) == near).all()


def test_a_fraction_is_no_genome_and_is_named():
    genome = Genome([0.5, 2.5, 0.0])
    assert not GENES.contains(genome)
    with pytest.raises(ValueError, match="gene n is 2.5, but it is integer: expected a whole number"):
        GENES.check(genome)


def test_choices():
    assert [gene.choices for gene in GENES.genes] == [0, 5, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gene("n", 0.5, 2.0, 1.0, "integer"), "needs whole numbers"),
        (lambda: Gene("c", 1.0, 2.0, 1.0, "categorical"), "numbered from 0, got 1.0"),
        (lambda: Gene.categorical("c", 1), "low < high"),
    ],
)
def test_impossible_genes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_genes_that_differ_only_in_where_they_apply_are_a_group():
    names = (
        "weight/a/layers-0-1/mlp",
        "weight/b/layers-0-1/mlp",
        "density/a/layers-0-1",
        "weight/a/layers-2-3/rest",
        "x",
    )
    genes = Genes(tuple(Gene(name, 0.0, 1.0, 0.5) for name in names))
    assert genes.groups.tolist() == [0, 1, 2, 0, 3]
