"""What can go wrong while experts are made."""

from __future__ import annotations

from evomerge.errors import EvomergeError


class FoundryError(EvomergeError):
    """Experts could not be made as the settings ask; the text says what was reached and what was asked."""
