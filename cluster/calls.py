"""One call on a worker's side: whatever the method does, an outcome comes out.

Exceptions are turned into text here, next to the worker. So one that cannot be pickled reaches the driver like any
other, and no traceback keeps the worker's memory (tensors of a failed candidate) alive.
"""

from __future__ import annotations

import traceback
from typing import Any

from cluster.pool import Raised, Returned, WorkerFactory, WorkersFailed


def perform(worker: Any, method: str, arguments: tuple[Any, ...]) -> Returned | Raised:
    """Call ``method`` of ``worker``. Never raises: `SystemExit` and its like are outcomes too."""
    try:
        return Returned(getattr(worker, method)(*arguments))
    except BaseException as error:
        return raised(error)


def make_worker(factory: WorkerFactory) -> Returned | Raised:
    """Return the worker that ``factory`` makes as `Returned`, or what it raised. Never raises."""
    try:
        return Returned(factory())
    except BaseException as error:
        return raised(error)


def raised(error: BaseException) -> Raised:
    """Describe ``error``; the traceback starts below the frame that caught it."""
    caught_in = error.__traceback__
    below = caught_in.tb_next if caught_in is not None else None
    lines = traceback.format_exception(type(error), error, below)
    return Raised(type(error).__name__, _text(error), "".join(lines))


def one_line(text: object) -> str:
    """Return a text, or that of one of Ray's errors (they fill a dozen lines), as one line."""
    return " ".join(str(text).split())


def factory_failed(cause: Raised) -> WorkersFailed:
    """Return the error that says that the factory raised ``cause``: one line, then the worker's traceback."""
    return WorkersFailed(
        f"the worker factory raised {cause.kind}: {cause.message}\n\nTraceback of the worker:\n{cause.traceback}"
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:  # a __str__ of the user's may fail as well
        return f"(its text cannot be made: {type(second).__name__})"
