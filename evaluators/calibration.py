"""Calibration prompts: the token sequences on which activations of models are looked at before a search."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import Any

from evaluators.encoding import Encoded, Encoder, Prompt
from evaluators.evaluation import Documents
from evaluators.requests import RequestBook
from evaluators.tasks import TaskSuite

MOST_PROMPTS, MOST_TOKENS = 64, 512


def calibration_prompts(
    suite: TaskSuite, tokenizer: Any, documents: Documents, *, max_length: int
) -> list[tuple[int, ...]]:
    """Return the tokens of the first requests of ``documents``, the tasks in turn: at most 64, each of at most its last
    512 tokens. Of a question with choices it is the first one.

    Args:
        documents: search documents, so that nothing is learned from others.
        max_length: context of the models in tokens.

    Raises:
        TaskError: a template fails, or a document does not fit the model.
    """
    book = RequestBook(suite, Encoder(tokenizer, max_length=max_length))
    asked = suite.split_into_parts(documents).ids
    of_parts = [book.requests(part, numbers[:MOST_PROMPTS]) for part, numbers in asked.items()]
    in_turn = [each for each in chain.from_iterable(zip_longest(*of_parts)) if each is not None]
    return [_tokens(each.encoded[0])[-MOST_TOKENS:] for each in in_turn[:MOST_PROMPTS]]


def _tokens(request: Encoded) -> tuple[int, ...]:
    if isinstance(request, Prompt):
        return request.tokens
    return request[0].context + request[0].continuation
