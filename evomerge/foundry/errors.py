"""What can go wrong while experts are made."""

from __future__ import annotations

from evomerge.errors import EvomergeError


class FoundryError(EvomergeError):
    """The experts could not be made as the settings ask; the message says what was reached and what was asked."""
