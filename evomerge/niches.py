"""The niches of a search, from its record: who would be in the archive after each evaluation, and what it covers.

Whatever the optimizer was, so that searches can be compared.
"""

from __future__ import annotations

from typing import NamedTuple

from evaluators.evaluation import Floats
from evomerge.archives.niches import NicheArchive, competition, coverage, entropy
from evomerge.optimizers.settings import NaturalNichesSettings
from evomerge.records import CandidateRecord
from evomerge.results import Results


class NichePoint(NamedTuple):
    """The archive after some evaluations.

    Attributes:
        evaluations: results on search documents so far, failures included.
        members: numbers of the candidates in the archive.
        coverage: share of the search documents on which some member scores above 0.
        entropy: how varied the members are, 0 to 1 bit a document.
        competition: mean number of members that score on a document on which one does.
    """

    evaluations: int
    members: tuple[int, ...]
    coverage: float
    entropy: float
    competition: float


def niche_history(results: Results) -> list[NichePoint]:
    """Return one point per result that the optimizer was told, in that order.

    The archive has the size and alpha of the search's own settings; of another optimizer's search, those that natural
    niches have by default.
    """
    settings = results.file.optimizer
    if not isinstance(settings, NaturalNichesSettings):
        settings = NaturalNichesSettings()
    archive = NicheArchive(results.chooser.preference.weights, size=settings.archive, alpha=settings.alpha)
    numbers: dict[bytes, int] = {}
    history = []
    for count, candidate in enumerate(_told(results), start=1):
        documents = _documents(results, candidate)
        if candidate.genome is not None and documents is not None:
            numbers.setdefault(candidate.genome.to_bytes(), candidate.number)
            archive.add(candidate.genome, documents)
        if len(archive):
            members = tuple(numbers[genome.to_bytes()] for genome in archive.genomes)
            scores = archive.scores
            history.append(NichePoint(count, members, coverage(scores), entropy(scores), competition(scores)))
    return history


def _told(results: Results) -> list[CandidateRecord]:
    pairs = [(c.evaluations["search"].told_at, c) for c in results.candidates if "search" in c.evaluations]
    told = [(at, c) for at, c in pairs if at is not None]
    return [candidate for _, candidate in sorted(told, key=lambda pair: pair[0])]


def _documents(results: Results, candidate: CandidateRecord) -> list[Floats] | None:
    evaluation = candidate.evaluations["search"]
    if evaluation.failure:
        return None
    return [o.sign * results.record.document_scores(evaluation, o.name) for o in results.objectives]
