"""Prompts that are continued together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from evaluators.encoding import Prompt
from evaluators.sampling import Sampling


@dataclass(frozen=True)
class PromptRow:
    """A prompt and the requests whose answer it gives."""

    prompt: Prompt
    requests: tuple[int, ...]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts padded on the left to the longest.

    Attributes:
        ids: (rows, length) int64.
        mask: (rows, length) int64, 0 on padding; None if all are equally long.
        stop_sets: the different sets of stop strings, and `stop_set`: (rows,) int64, which one a row has.
        longest: (rows,) int64, the most new tokens.
    """

    rows: tuple[PromptRow, ...]
    ids: torch.Tensor
    mask: torch.Tensor | None
    stop_sets: tuple[tuple[str, ...], ...]
    stop_set: torch.Tensor
    longest: torch.Tensor

    @cached_property
    def sampled(self) -> dict[Sampling, dict[int, int]]:
        """The keys of the rows that are sampled, by row, for each way of sampling."""
        found: dict[Sampling, dict[int, int]] = {}
        for number, row in enumerate(self.rows):
            if row.prompt.sampling is not None:
                found.setdefault(row.prompt.sampling, {})[number] = row.prompt.key
        return found


def collate_prompts(rows: Sequence[PromptRow]) -> PromptBatch:
    """Return ``rows`` as tensors."""
    prompts = [row.prompt for row in rows]
    length = max(len(prompt.tokens) for prompt in prompts)
    padding = [length - len(prompt.tokens) for prompt in prompts]
    # padding repeats the first token, which a repetition penalty has seen anyway
    padded = [(p.tokens[0],) * missing + p.tokens for p, missing in zip(prompts, padding, strict=True)]
    mask = torch.arange(length) >= torch.tensor(padding)[:, None]
    numbers: dict[tuple[str, ...], int] = {}
    stop_set = [numbers.setdefault(prompt.until, len(numbers)) for prompt in prompts]
    return PromptBatch(
        tuple(rows),
        torch.tensor(padded),
        mask.long() if any(padding) else None,
        tuple(numbers),
        torch.tensor(stop_set),
        torch.tensor([prompt.max_new_tokens for prompt in prompts]),
    )
