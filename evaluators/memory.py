"""What to do when a batch does not fit into memory: run its halves, down to single rows, and remember."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Row = TypeVar("Row")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out; PyTorch's CPU allocator says so in a plain `RuntimeError`."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class Room:
    """How large a batch may be: learnt from those that did not fit, so that the next ones are not tried in vain."""

    def __init__(self) -> None:
        self._limit = math.inf

    def takes(self, size: int) -> bool:
        """Whether a batch of ``size`` is worth trying."""
        return size <= self._limit

    def refused(self, size: int) -> None:
        """A batch of ``size`` did not fit."""
        self._limit = min(self._limit, size - 1)


def in_halves(
    rows: Sequence[Row],
    run: Callable[[Sequence[Row]], None],
    *,
    room: Room,
    size: Callable[[Sequence[Row]], int],
) -> None:
    """Call ``run`` on ``rows``, or on ever smaller parts of them while memory runs out or ``room`` says that it would.

    Args:
        size: what some rows need together, in any unit; the same for every call with one ``room``.

    Raises:
        MemoryError, torch.OutOfMemoryError, RuntimeError: a single row does not fit, whatever ``run`` raised.
    """
    if len(rows) == 1 or room.takes(size(rows)):
        try:
            run(rows)
            return
        except Exception as error:
            if len(rows) == 1 or not is_out_of_memory(error):
                raise
        room.refused(size(rows))
        # outside the handler: the traceback would keep the batch's tensors alive
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    middle = len(rows) // 2
    for part in (rows[:middle], rows[middle:]):
        in_halves(part, run, room=room, size=size)
