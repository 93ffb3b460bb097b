"""What one source adds to a merge."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.merging.keeps import Keep


@dataclass(frozen=True)
class Term:
    """One source's share: its position, its coefficient, and the elements of its task vector that count."""

    source: int
    weight: float
    keep: Keep | None = None
    rescale: float = 1.0

    @property
    def coefficient(self) -> float:
        """What the kept part of the task vector is multiplied by."""
        return self.weight * self.rescale
