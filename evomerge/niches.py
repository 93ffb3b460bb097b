"""The niches of a search, from its record: who would be in the archive after each evaluation, and what it covers.

Whatever the optimizer was, so that searches can be compared.
"""

from __future__ import annotations

from typing import NamedTuple

from evomerge.archives.niches import NicheArchive, competition, coverage, entropy
from evomerge.optimizers.settings import NaturalNichesSettings
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
    known = results.candidates.evaluations
    told = known.told.tolist()
    candidates = results.candidates.each(known.candidates[told].tolist())
    documents = results.candidates.document_scores(told)
    numbers: dict[bytes, int] = {}
    history = []
    for count, (candidate, scores) in enumerate(zip(candidates, documents, strict=True), start=1):
        if candidate.genome is not None and scores:
            numbers.setdefault(candidate.genome.to_bytes(), candidate.number)
            archive.add(candidate.genome, [o.sign * scores[o.name] for o in results.objectives])
        if len(archive):
            members = tuple(numbers[genome.to_bytes()] for genome in archive.genomes)
            table = archive.scores
            history.append(NichePoint(count, members, coverage(table), entropy(table), competition(table)))
    return history
