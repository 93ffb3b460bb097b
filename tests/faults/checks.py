"""What must be true of a search whatever struck it, compared with a fault-free run of the same seed."""

import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import sqlalchemy as sa
from fake_search import finish
from fakes import search_file

from evomerge import schema
from evomerge.errors import BadSearch
from evomerge.results import Results
from evomerge.store import Store

from .places import WORKER, marked, send, signal

WORKERS_GO_WITHIN_SECONDS = 20.0
ALL_GO_WITHIN_SECONDS = 90.0  # two of Ray's own helpers look for their driver once a minute


@lru_cache(maxsize=64)
def fault_free(optimizer: tuple, evaluations: int) -> Results:
    """The results of a search that nothing struck, in this process on one worker."""
    budget = {"evaluations": evaluations, "finalists": 5}
    with tempfile.TemporaryDirectory() as folder:
        results = finish(search_file(Path(folder), optimizer=dict(optimizer), budget=budget))
        assert results.winner is not None  # read while its record is there
    return results


def committed(storage: str) -> dict[int, tuple]:
    """Everything that the record holds of evaluations, by their ids; empty before there is a record."""
    e, s = schema.evaluations, schema.scores
    try:
        rows = {row.id: tuple(row) for row in rows_of(storage, sa.select(e))}
        scores = rows_of(storage, sa.select(s).order_by(s.c.evaluation_id, s.c.objective))
    except BadSearch:
        return {}
    for row in scores:
        if row.evaluation_id in rows:  # else it was committed between the two queries
            rows[row.evaluation_id] += (*row[:-1], sha256(row.documents).hexdigest())
    return rows


def rows_of(storage: str, query: sa.Select | sa.TextClause) -> list:
    """The rows that ``query`` finds."""
    with closing(Store(storage)) as store:
        return store.database.read(lambda connection: connection.execute(query).all())


def lost(before: dict[int, tuple], storage: str) -> list[str]:
    """Evaluations that were committed and are gone, or have changed."""
    now = committed(storage)
    return [f"evaluation {key} is gone or has changed" for key, row in before.items() if now.get(key) != row]


class Reader:
    """Somebody who reads the record all the time; `faults` are what should never be seen."""

    EVERY_SECONDS = 0.5

    def __init__(self, storage: str, name: str) -> None:
        self.faults: list[str] = []
        self.reads = self.refused = 0
        self._storage, self._name, self._seen = storage, name, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_on, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()

    def _read_on(self) -> None:
        while not self._stop.wait(self.EVERY_SECONDS):
            try:
                self._read()
                self.reads += 1
            except BadSearch:
                self.refused += 1  # not there yet, or its disk or server is gone: said, not half read
            except Exception as error:
                self.faults.append(f"a reader saw {type(error).__name__}: {error}")

    def _read(self) -> None:
        with closing(Store(self._storage)) as store:
            results = Results.of(store.search(self._name))
            _ = results.front, results.state
        names = {objective.name for objective in results.objectives}
        every = [e for c in results.candidates for e in c.evaluations.values()]
        half = [e.id for e in every if not e.failure and set(e.scores) != names]
        self.faults += [f"a reader saw evaluation {key} without all its scores" for key in half]
        if len(every) < self._seen:
            self.faults.append(f"a reader saw {len(every)} evaluations after {self._seen}")
        self._seen = len(every)


@dataclass
class Graveyard:
    """Marks of processes that are dead, and of all that they started, which must follow them."""

    graves: list[tuple[str, float]] = field(default_factory=list)

    def bury(self, mark: str) -> None:
        """The process with ``mark`` has ended just now."""
        self.graves.append((mark, time.monotonic()))

    def look(self) -> list[str]:
        """Return who outlived a dead process for too long (and end them)."""
        found, left = [], []
        for mark, died in self.graves:
            age = time.monotonic() - died
            late = age > ALL_GO_WITHIN_SECONDS
            orphans = marked(mark, "" if late else WORKER) if age > WORKERS_GO_WITHIN_SECONDS else []
            found += [f"{orphan.name()} outlived {mark} by {age:.0f} s" for orphan in orphans]
            send(orphans, signal.SIGKILL)
            if not late:
                left.append((mark, died))
        self.graves = left
        return found

    def wait(self) -> list[str]:
        """Look until every grave is old enough."""
        found = self.look()
        while self.graves:
            self.graves = [(mark, died) for mark, died in self.graves if marked(mark)]
            time.sleep(0.5)
            found += self.look()
        return found


def broken(storage: str, journal: Path, optimizer: tuple, evaluations: int, *, in_order: bool, hangs: int) -> list[str]:
    """Return what is wrong with the finished search in ``storage``.

    Args:
        journal: what its drivers were told was committed.
        in_order: one worker did everything, so that the order is that of the fault-free run too.
        hangs: how many candidates may have failed because their worker hung.
    """
    with closing(Store(storage)) as store:
        results = Results.of(store.search("fake"))
        wrong = [*_uncounted(results, evaluations), *_unlike_journal(results, storage, journal)]
        wrong += _unlike_fault_free(results, fault_free(optimizer, evaluations), in_order=in_order, hangs=hangs)
    if storage.startswith("sqlite"):
        wrong += [row[0] for row in rows_of(storage, sa.text("PRAGMA integrity_check")) if row[0] != "ok"]
        wrong += [str(row) for row in rows_of(storage, sa.text("PRAGMA foreign_key_check"))]
    return wrong


def _uncounted(results: Results, evaluations: int) -> list[str]:
    """Numbers that do not add up: candidates, the sequence of asks and tells, what was spent."""
    wrong = []
    candidates = results.candidates
    if [c.number for c in candidates] != list(range(len(candidates))):
        wrong.append("candidate numbers have gaps or repeat")
    steps = [c.asked_at for c in candidates if c.asked_at is not None]
    steps += [e.told_at for c in candidates if (e := c.evaluations.get("search")) and e.told_at is not None]
    if sorted(steps) != list(range(len(steps))):
        wrong.append("the sequence of asks and tells has gaps or repeats")
    if results.spent != evaluations:
        wrong.append(f"{results.spent} evaluations are counted instead of {evaluations}")
    if results.state != "finished":
        wrong.append(f"the search is {results.state}, not finished")
    return wrong


def _unlike_journal(results: Results, storage: str, journal: Path) -> list[str]:
    rows = rows_of(storage, sa.select(schema.evaluations))
    wrong = []
    if len({(row.candidate_id, row.split) for row in rows}) != len(rows):
        wrong.append("a candidate was measured twice on the same documents")
    recorded = {(c.number, split, e.id) for c in results.candidates for split, e in c.evaluations.items()}
    told = [line.split() for line in journal.read_text().splitlines()]
    missing = {(int(number), split, int(key)) for number, split, key in told} - recorded
    wrong += [f"evaluation {key} of candidate {number} on {split} is lost" for number, split, key in sorted(missing)]
    return wrong


def _unlike_fault_free(results: Results, whole: Results, *, in_order: bool, hangs: int) -> list[str]:
    wrong = []
    ours = {c.recipe_digest: c for c in results.candidates if c.origin != "baseline"}
    theirs = {c.recipe_digest: c for c in whole.candidates if c.origin != "baseline"}
    if ours.keys() != theirs.keys() or (in_order and list(ours) != list(theirs)):
        wrong.append("the candidates are not those of the fault-free run")
    failed = {digest for digest, c in ours.items() if c.state == "failed"}
    if len(failed) > hangs:
        wrong.append(f"{len(failed)} candidates failed where at most {hangs} worker(s) hung: {results.failures}")
    for digest in ours.keys() & theirs.keys() - failed:
        mine, expected = ours[digest].evaluations, theirs[digest].evaluations
        if any(mine[split].scores != expected[split].scores for split in mine.keys() & expected.keys()):
            wrong.append(f"candidate {ours[digest].number} has other scores than in the fault-free run")
    front = {c.recipe_digest for c in whole.chooser.front(c for c in whole.candidates if c.recipe_digest not in failed)}
    if {c.recipe_digest for c in results.front} != front:
        wrong.append("the front is not that of the fault-free run")
    if not failed and results.winner.recipe_digest != whole.winner.recipe_digest:
        wrong.append("the winner is not that of the fault-free run")
    return wrong
