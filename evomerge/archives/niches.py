"""Natural niches: documents are resources that the members of an archive share (M2N2, arXiv 2508.16204).

With s_ij the score of member i on document j, z_j = sum_i s_ij and the capacity c_j = max_i s_ij, which is 1 for binary
scores on every document that anyone solves:

    fitness     f_i     = sum_j w_j c_j s_ij / z_j^alpha             alpha = 0: no sharing
    attraction  g(A, B) = sum_j w_j c_j / z_j max(s_Bj - s_Aj, 0)    what B would add to A where few are good

Documents that nobody solves (z_j = 0) count nothing. w_j is the weight of the document's objective by the number of its
documents, so that each objective counts by its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from search_spaces.genes import Genome, Vector

Table: TypeAlias = npt.NDArray[np.float64]


def shares(scores: Table, importance: Vector, *, alpha: float = 1.0) -> Vector:
    """Return the fitness (members,) of ``scores`` (members, documents), none negative."""
    return np.asarray(scores @ (importance * scores.max(axis=0) / _crowd(scores) ** alpha))


def attraction(scores: Table, importance: Vector, member: int) -> Vector:
    """Return the attraction (members,) of ``member`` to each; 0 to itself."""
    gain = np.maximum(scores - scores[member], 0.0)
    return np.asarray(gain @ (importance * scores.max(axis=0) / _crowd(scores)))


def coverage(scores: Table) -> float:
    """Return the share of documents on which some member scores above 0; of binary scores: that someone solves."""
    return float((scores > 0.0).any(axis=0).mean())


def entropy(scores: Table) -> float:
    """Return the mean over documents of the entropy, in bits, of "a random member scores here": 0 to 1.

    Near 0 all members solve the same documents; it is how varied the archive is.
    """
    share = np.clip((scores > 0.0).mean(axis=0), 1e-12, 1.0 - 1e-12)
    return float(-(share * np.log2(share) + (1.0 - share) * np.log2(1.0 - share)).mean())


def competition(scores: Table) -> float:
    """Return the mean number of members that score on a document, over the documents on which one does."""
    crowd = (scores > 0.0).sum(axis=0)
    return float(crowd[crowd > 0].mean()) if crowd.any() else 0.0


def _crowd(scores: Table) -> Vector:
    total = scores.sum(axis=0)
    return np.where(total > 0.0, total, 1.0)


class NicheArchive:
    """The members of a search by natural niches: whoever has the smallest fitness leaves."""

    def __init__(self, weights: Vector, *, size: int, alpha: float = 1.0) -> None:
        """``weights``: (objectives,) positive; ``size``: members kept; ``alpha``: how strongly they compete."""
        self._weights = np.asarray(weights, dtype=np.float64)
        self._size = size
        self._alpha = alpha
        self._stops: list[int] = []  # where each objective's documents end
        self._raw = np.zeros((0, 0))
        self._importance = np.zeros(0)
        self.genomes: list[Genome] = []
        self.scores: Table = np.zeros((0, 0))  # (members, documents), none negative

    def __len__(self) -> int:
        return len(self.genomes)

    def add(self, genome: Genome, documents: Sequence[Vector]) -> bool:
        """Let ``genome`` compete, and return whether it stayed. A genome that is a member already changes nothing.

        Args:
            documents: (documents,) scores of every objective, more is better. Of an objective that is somewhere
                negative, each document's least score among the members is taken off, and one that is somewhere above 1
                is divided by its largest score.

        Raises:
            ValueError: the documents are not those of the other members.
        """
        extended = self._with(documents)
        alike = np.flatnonzero((extended[:-1] == extended[-1]).all(axis=1)).tolist()
        if any(genome == self.genomes[member] for member in alike):
            return False
        self._raw = extended
        self.genomes.append(genome)
        if len(self) > self._size:
            leaves = int(np.argmin(shares(self._comparable(), self._importance, alpha=self._alpha)))
            self._raw = np.delete(self._raw, leaves, axis=0)
            self.genomes.pop(leaves)
            if leaves == self._size:
                return False
        self.scores = self._comparable()
        return True

    @property
    def fitness(self) -> Vector:
        """(members,) by `shares`."""
        return shares(self.scores, self._importance, alpha=self._alpha)

    def attraction(self, member: int) -> Vector:
        """(members,) by `attraction`."""
        return attraction(self.scores, self._importance, member)

    def _with(self, documents: Sequence[Vector]) -> Table:
        if len(documents) != len(self._weights):
            raise ValueError(f"documents: {len(self._weights)} objectives have scores, got those of {len(documents)}")
        stops = np.cumsum([len(part) for part in documents]).tolist()
        row = np.concatenate([np.asarray(part, dtype=np.float64) for part in documents])
        if not self._stops:
            self._stops = stops
            each = self._weights / self._weights.sum() / [len(part) for part in documents]
            self._importance = np.repeat(each, [len(part) for part in documents])
            self._raw = np.zeros((0, len(row)))
        if stops != self._stops:
            raise ValueError(f"documents: expected objectives that end at {self._stops}, got {stops}")
        return np.vstack([self._raw, row])

    def _comparable(self) -> Table:
        scores = self._raw.copy()
        for start, stop in zip([0, *self._stops], self._stops, strict=False):
            part = scores[:, start:stop]
            if part.min() < 0.0:
                part -= part.min(axis=0)
            if part.max() > 1.0:
                part /= part.max()
        return scores
