"""What was proposed before, so that no evaluation is spent on the same genome twice."""

from __future__ import annotations

import hashlib

from search_spaces.genes import Genome

DIGEST_BYTES = 16  # two of 2^32 genomes share a digest with a probability of 3e-20


class Proposed:
    """The set of genomes that were asked for or given, kept as digests: 16 bytes each, however many genes."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def __contains__(self, genome: Genome) -> bool:
        return self._digest(genome) in self._digests

    def add(self, genome: Genome) -> None:
        """Remember ``genome``."""
        self._digests.add(self._digest(genome))

    def claim(self, genome: Genome) -> bool:
        """Remember ``genome``, and return whether it is new."""
        before = len(self._digests)
        self._digests.add(self._digest(genome))
        return len(self._digests) > before

    @staticmethod
    def _digest(genome: Genome) -> bytes:
        return hashlib.blake2b(genome.to_bytes(), digest_size=DIGEST_BYTES).digest()
