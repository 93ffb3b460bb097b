"""Which candidates a figure shows, and as what."""

from __future__ import annotations

from evomerge.records import CandidateRecord
from evomerge.results import Results


def measured(results: Results) -> list[CandidateRecord]:
    """Return the candidates measured on search documents."""
    return [c for c in results.candidates if c.state == "measured"]


def marked(results: Results) -> list[tuple[str, CandidateRecord]]:
    """Return role and candidate of references and winner, the winner last so that it lies on top."""
    winner = results.winner
    pairs = [(results.role(c), c) for c in results.references if c.state == "measured" and c != winner]
    return [*pairs, ("winner", winner)] if winner and winner.state == "measured" else pairs
