"""Resource sharing and attraction, against numbers worked out by hand, and the archive's rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.archives.niches import NicheArchive, attraction, competition, coverage, entropy, shares
from search_spaces.genes import Genome

EVEN = np.full(4, 0.25)
SCORES = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
tables = arrays(np.float64, (4, 6), elements=st.sampled_from([0.0, 0.25, 1.0]))


def archive_of(rows, **changes):
    archive = NicheArchive(np.ones(1), **{"size": 3, **changes})
    for number, row in enumerate(rows):
        archive.add(Genome([number]), [np.array(row, dtype=float)])
    return archive


def names(archive):
    return [int(genome.values[0]) for genome in archive.genomes]


def test_members_share_what_they_solve():
    assert shares(SCORES, EVEN) == pytest.approx([0.25 * (0.5 + 0.5 + 1.0), 0.25 * (0.5 + 0.5), 0.0])
    assert shares(SCORES, EVEN, alpha=0.0) == pytest.approx([0.75, 0.5, 0.0])


def test_capacity_of_continuous_scores_is_the_best_score():
    scores = np.array([[0.2, 0.6], [0.2, 0.2]])
    assert shares(scores, np.ones(2)) == pytest.approx([0.2 * 0.5 + 0.6 * 0.75, 0.2 * 0.5 + 0.6 * 0.25])


def test_attraction_is_what_the_other_adds_where_few_are_good():
    found = attraction(np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]), np.ones(3), 0)
    assert found == pytest.approx([0.0, 0.5, 0.5])


@given(tables)
def test_without_sharing_and_with_it_all_resources_are_given_away(scores):
    total = scores.max(axis=0).sum() / 6.0
    assert shares(scores, np.full(6, 1.0 / 6.0)).sum() == pytest.approx(total)


@given(tables, st.integers(0, 3))
def test_nobody_is_attracted_to_itself(scores, member):
    found = attraction(scores, np.ones(6), member)
    assert found[member] == 0.0
    assert (found >= 0.0).all()


def test_the_one_that_solves_what_nobody_else_does_stays():
    archive = archive_of([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 0]])
    assert names(archive) == [0, 2, 3]
    assert coverage(archive.scores) == 1.0
    plain = archive_of([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 0]], alpha=0.0)
    assert names(plain) == [0, 1, 3]


def test_a_worse_child_is_turned_away_and_ties_go_against_the_older():
    archive = archive_of([[1, 0], [0, 1]], size=2)
    assert not archive.add(Genome([9]), [np.zeros(2)])
    assert archive.add(Genome([5]), [np.array([1.0, 0.0])])
    assert names(archive) == [1, 5]


def test_the_same_genome_joins_once_and_an_equal_score_of_another_counts():
    archive = archive_of([[1, 0]])
    assert not archive.add(Genome([0]), [np.array([1.0, 0.0])])
    assert archive.add(Genome([1]), [np.array([1.0, 0.0])])
    assert len(archive) == 2


def test_scores_below_zero_are_shifted_and_large_ones_scaled():
    archive = archive_of([[-3.0, -1.0], [-1.0, -1.0]])
    assert archive.scores.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    archive.add(Genome([7]), [np.array([-3.0, 1.0])])
    assert archive.scores.tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


def test_objectives_count_by_their_weights_however_many_documents_they_have():
    archive = NicheArchive(np.array([1.0, 3.0]), size=5)
    archive.add(Genome([0]), [np.ones(10), np.zeros(2)])
    archive.add(Genome([1]), [np.zeros(10), np.ones(2)])
    assert archive.fitness == pytest.approx([0.25, 0.75])


def test_other_documents_are_refused():
    archive = archive_of([[1, 0]])
    with pytest.raises(ValueError, match=r"expected objectives that end at \[2\], got \[3\]"):
        archive.add(Genome([1]), [np.ones(3)])
    with pytest.raises(ValueError, match="1 objectives have scores, got those of 2"):
        archive.add(Genome([1]), [np.ones(2), np.ones(2)])


def test_coverage_entropy_and_competition():
    alike = np.array([[1.0, 0.0], [1.0, 0.0]])
    varied = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert (coverage(alike), coverage(varied)) == (0.5, 1.0)
    assert (entropy(alike), entropy(varied)) == pytest.approx((0.0, 1.0), abs=1e-9)
    assert (competition(alike), competition(varied)) == (2.0, 1.0)
    assert competition(np.zeros((2, 2))) == 0.0
