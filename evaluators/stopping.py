"""When a generated answer is over, by lm-eval's rules, and its text.

lm-eval decodes the last tokens of every row after every step and looks for each stop string. Here a table per stop
set says for every token whether it can complete a stop string at all; only rows that chose such a token are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from lm_eval.models.utils import postprocess_generated_text

StopSet: TypeAlias = tuple[str, ...]
GOES_ON, MAY_STOP, STOPS = 0, 1, 2
_EXTRA_LOOKBACK = 2  # tokens beyond a stop string's own, as lm-eval: it may be spelt with other tokens


class Stopping:
    """Stop tables and texts for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: list[str] = []
        self._tables: dict[tuple[StopSet, frozenset[int], int], torch.Tensor] = {}
        self._lengths: dict[str, int] = {}

    def table(self, until: StopSet, end_tokens: frozenset[int], *, vocabulary: int) -> torch.Tensor:
        """Return what each of ``vocabulary`` tokens does to a row with these stops: (vocabulary,) int8.

        ``end_tokens`` are the model's own end-of-sequence tokens.
        """
        key = (until, end_tokens, vocabulary)
        if key not in self._tables:
            self._tables[key] = self._make_table(until, end_tokens, vocabulary)
        return self._tables[key]

    def is_over(self, answer: Sequence[int], until: StopSet) -> bool:
        """Whether the end of the tokens in ``answer`` holds one of the stop strings."""
        return any(stop in self._tokenizer.decode(answer[-self._lookback(stop) :]) for stop in until)

    def text(self, answer: Sequence[int], until: StopSet) -> str:
        """Return the text of the tokens in ``answer`` up to the first stop string, without special tokens."""
        text = self._tokenizer.decode(list(answer), skip_special_tokens=True)
        return str(postprocess_generated_text(text, stop=list(until), think_end_token=None))

    def _lookback(self, stop: str) -> int:
        if stop not in self._lengths:
            tokens = self._tokenizer.encode(stop, add_special_tokens=False)
            self._lengths[stop] = len(tokens) + _EXTRA_LOOKBACK
        return self._lengths[stop]

    def _make_table(self, until: StopSet, end_tokens: frozenset[int], vocabulary: int) -> torch.Tensor:
        if not self._pieces:
            # each token twice: the first of a text may lose its leading space
            pairs = [[token, token] for token in range(len(self._tokenizer))]
            self._pieces = self._tokenizer.batch_decode(pairs)
        last = {stop[-1:] for stop in until}
        # an incomplete character decodes to U+FFFD: which one it becomes is not known yet
        kinds = [
            MAY_STOP if "\ufffd" in piece or any(letter in piece for letter in last) else GOES_ON
            for piece in self._pieces[:vocabulary]
        ]
        table = torch.full((vocabulary,), MAY_STOP, dtype=torch.int8)
        table[: len(kinds)] = torch.tensor(kinds, dtype=torch.int8)
        for token in end_tokens:
            if token < vocabulary:
                table[token] = STOPS
        end = self._tokenizer.eos_token_id
        if end is not None and end < vocabulary and self._tokenizer.decode([end]) in until:
            table[end] = STOPS
        return table
