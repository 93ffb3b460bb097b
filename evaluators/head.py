"""Runs a model's body on all tokens and its output head on chosen positions only.

The head is chosen by a hook on the output embeddings, so whatever a family does to its logits afterwards (soft caps,
scales) is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Choose = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def head_on(model: Any, choose: Choose) -> Iterator[Choose]:
    """Inside, the model's logits are those of ``choose(hidden states)``.

    Yields a function for the logits that come out: it returns the chosen ones also for the few models without output
    embeddings, whose head cannot be hooked.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield choose
        return
    hook = head.register_forward_pre_hook(lambda _, inputs: (choose(inputs[0]), *inputs[1:]))
    try:
        yield lambda logits: logits
    finally:
        hook.remove()


def last_position(states: torch.Tensor) -> torch.Tensor:
    """(rows, length, width) to (rows, 1, width)."""
    return states[:, -1:]
