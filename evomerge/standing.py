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

State = Literal["searching", "validating", "testing", "finished", "interrupted", "lost"]


@dataclass(frozen=True)
class Standing:
    """What is true of a search now.

    Attributes:
        state: a state of `Results` if a driver runs or nothing is left to do; else *interrupted* after a clean stop,
            *lost* if the driver was killed.
        driver: process and host of the driver, or None.
        last_sign: seconds since the epoch when a lost driver was seen last; None in other states.
    """

    state: State
    driver: str | None = None
    last_sign: float | None = None

    @property
    def words(self) -> str:
        """The state for people."""
        if self.last_sign is None:
            return self.state
        return f"no sign of life since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.last_sign))}"

    @property
    def remedy(self) -> str | None:
        """What to do about it; None while somebody works on it, or when it is finished."""
        if self.state not in ("interrupted", "lost"):
            return None
        return "nothing runs; `evomerge run` (or `submit`) with its search file continues it"


def standing(results: Results) -> Standing:
    """Return where the search of ``results`` stands now."""
    store, name = results.record.store, results.record.name
    if results.state == "finished":
        return Standing("finished")
    driver = store.driver(name)
    if driver is None:
        results = results.newer()  # it may have come to its end since it was read
    if driver is not None or results.state == "finished":
        return Standing(results.state, driver)
    crew = crews.latest(results.record)
    if crew is None:
        return Standing("interrupted")
    known = results.candidates.evaluations.created
    last = max(crew.seen, float(known[-1]) if len(known) else 0.0)
    return Standing("lost", last_sign=min(last, time.time()))  # whatever the driver's clock said
