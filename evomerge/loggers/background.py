"""A logger in a thread of its own: whatever it does, it neither stops the search nor slows it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from evaluators.errors import one_line
from evomerge.loggers.contract import RunLogger

MOST_WAITING = 10_000  # calls; a logger that is farther behind is given up
CLOSE_SECONDS = 30.0  # how long the end of a search waits for a slow server

Call = Callable[[RunLogger], None]


class Background:
    """Makes a logger and calls it in a thread of its own, in order, until it fails.

    Attributes:
        fault: why there is no more logging; None while there is.
    """

    def __init__(self, name: str, make: Callable[[], RunLogger]) -> None:
        self.name = name
        self.fault: str | None = None
        self._make = make
        self._calls: queue.Queue[Call | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"log-{name}", daemon=True)
        self._thread.start()

    def call(self, call: Call) -> None:
        """Let the thread do ``call`` with the logger."""
        if self.fault is None:
            try:
                self._calls.put_nowait(call)
            except queue.Full:
                self.fault = f"it is {MOST_WAITING:,} results behind"

    def close(self) -> None:
        """Wait until everything is written, for a bounded time."""
        if self.fault is None:
            try:
                self._calls.put(None, timeout=CLOSE_SECONDS)
                self._thread.join(CLOSE_SECONDS)
            except queue.Full:
                pass
            if self._thread.is_alive():
                self.fault = self.fault or f"it was not done {CLOSE_SECONDS:g} s after the search"

    def _work(self) -> None:
        try:
            logger = self._make()
            while (call := self._calls.get()) is not None and self.fault is None:
                call(logger)
        except Exception as error:  # whatever a library or a server makes of it
            self.fault = f"{type(error).__name__}: {one_line(error)}"
