"""What to do when a batch does not fit into memory: run its halves, down to single rows."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Row = TypeVar("Row")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out; PyTorch's CPU allocator says so in a plain `RuntimeError`."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def in_halves(rows: Sequence[Row], run: Callable[[Sequence[Row]], None]) -> None:
    """Call ``run`` on ``rows``, or on ever smaller parts of them while memory runs out.

    Raises:
        MemoryError, torch.OutOfMemoryError, RuntimeError: a single row does not fit, whatever ``run`` raised.
    """
    try:
        run(rows)
        return
    except Exception as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
    # outside the handler: the traceback would keep the batch's tensors alive
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(rows) // 2
    in_halves(rows[:middle], run)
    in_halves(rows[middle:], run)
