"""Documents that are longer than the model's context: lm-eval cuts them, here they are also counted."""

from __future__ import annotations

from collections.abc import Iterable

from evaluators.encoding import Prompt
from evaluators.requests import DocumentRequests, Encoded


def count_truncated(requests: Iterable[DocumentRequests], *, max_length: int) -> int:
    """Return how many of the documents lose the beginning of a prompt to a context of ``max_length`` tokens.

    A text whose whole likelihood is measured (`loglikelihood_rolling`) is split into windows and loses nothing.
    """
    return sum(any(_is_cut(each, max_length) for each in request.encoded) for request in requests)


def _is_cut(encoded: Encoded, max_length: int) -> bool:
    if isinstance(encoded, Prompt):
        return encoded.cut > 0
    # the last token of all is scored, but never an input
    return any(len(window.context) + len(window.continuation) > max_length + 1 for window in encoded)
