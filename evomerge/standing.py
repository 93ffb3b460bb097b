"""Whether anybody works on a search that is not finished: its driver's lock, and the last sign of life.

The system gives the lock back when the driver ends, however it ends. A driver that ends on its own also takes its crew
out of the record (`evomerge.crews`), so a crew without a driver was left by one that was killed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from evomerge import crews
from evomerge.results import Results

SILENT_SECONDS = 300.0  # a driver that works gives a sign every few seconds
State = Literal["searching", "validating", "testing", "finished", "interrupted", "lost"]


@dataclass(frozen=True)
class Standing:
    """What is true of a search now.

    Attributes:
        state: a state of `Results` if a driver runs or nothing is left to do; else *interrupted* after a clean stop,
            *lost* if the driver was killed.
        driver: process and host of the driver, or None.
        last_sign: seconds since the epoch when a driver was seen last that is lost, or silent for `SILENT_SECONDS`
            though it holds the lock; else None.
    """

    state: State
    driver: str | None = None
    last_sign: float | None = None

    @property
    def words(self) -> str:
        """The state for people."""
        if self.last_sign is None:
            return self.state
        since = f"no sign of life since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.last_sign))}"
        return since if self.driver is None else f"{self.state}, but {since}"

    @property
    def remedy(self) -> str | None:
        """What to do about it; None while somebody works on it, or when it is finished."""
        continued = "`evomerge run` (or `submit`) with its search file continues it"
        if self.driver is not None and self.last_sign is not None:
            return (
                f"its driver ({self.driver}) hangs, is stopped or computes its next candidates; if it stays so, end "
                f"it: then {continued}"
            )
        return f"nothing runs; {continued}" if self.state in ("interrupted", "lost") else None


def standing(results: Results) -> Standing:
    """Return where the search of ``results`` stands now."""
    store, name = results.record.store, results.record.name
    if results.state == "finished":
        return Standing("finished")
    driver = store.driver(name)
    if driver is None:
        results = results.newer()  # it may have come to its end since it was read
    if results.state == "finished":
        return Standing("finished", driver.owner if driver else None)
    crew, now = crews.latest(results.record), time.time()
    known = results.candidates.evaluations.created
    last = max(crew.seen if crew else 0.0, float(known[-1]) if len(known) else 0.0)
    if driver is not None:
        silent = last > driver.since and now - last > SILENT_SECONDS  # one that prepares has given no sign yet
        return Standing(results.state, driver.owner, last if silent else None)
    return Standing("interrupted") if crew is None else Standing("lost", last_sign=min(last, now))  # by any clock
