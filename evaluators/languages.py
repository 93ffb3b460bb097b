"""Which language a response is in; the only importer of py3langid, an optional library."""

from __future__ import annotations

from functools import cache
from typing import Any

from evaluators.errors import TaskError

_CERTAIN = 0.5  # as in the founding paper: the language's probability is above one half


class LanguageDetector:
    """Says whether a text is in one language.

    py3langid (4.6 MB, its model included, 139 languages) gives each language a probability; texts without a letter
    are in no language.
    """

    def __init__(self, language: str) -> None:
        """Take an ISO 639-1 code.

        Raises:
            TaskError: py3langid is not installed, or does not know the language.
        """
        identifier = _identifier()
        known = {str(label) for label in identifier.labels}
        if language not in known:
            raise TaskError(f"language {language!r} cannot be detected; known: {', '.join(sorted(known))}")
        self._language = language
        self._identifier = identifier

    def __call__(self, text: str) -> bool:
        """Whether ``text`` is more likely in the language than in all others together."""
        if not any(letter.isalpha() for letter in text):
            return False
        found, probability = self._identifier.classify(text)
        return str(found) == self._language and float(probability) > _CERTAIN


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise TaskError(
            "objectives of kind language need the library py3langid: pip install 'evomerge[language]'"
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
