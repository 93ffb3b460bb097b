"""The workers of a search as its driver saw them last: what each does, where, since when.

A driver takes them out of the record when it ends on its own: those of one that was killed stay.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from cluster.pool import Crowd
from evomerge.foreign import a_row
from evomerge.schema import crews
from evomerge.store import SearchRecord

if TYPE_CHECKING:
    from cluster.pool import WorkerNow
    from evomerge.dispatch import Dispatcher  # of no use to who reads


@dataclass(frozen=True)
class Seat:
    """One worker.

    Attributes:
        doing: waiting (for a place), starting, idle or busy.
        host, node, process: where it runs; empty and 0 while it has no place.
        since: seconds since the epoch.
        candidate: number of the one that it measures on the documents of ``split``.
    """

    doing: str
    host: str
    node: str
    process: int
    since: float
    candidate: int | None = None
    split: str | None = None

    @property
    def where(self) -> str:
        """The host, or the part of the node's id that tells it apart where there is none."""
        return self.host or self.node[:8] or "no place yet"


@dataclass(frozen=True)
class Crew:
    """All workers at one moment, in seconds since the epoch; ``crowd``: who has those that are waited for."""

    seats: tuple[Seat, ...]
    seen: float
    crowd: Crowd | None = None

    @property
    def by_host(self) -> Mapping[str, list[Seat]]:
        """The workers by host, those without a place last."""
        hosts: dict[str, list[Seat]] = {}
        for seat in sorted(self.seats, key=lambda seat: (seat.process == 0, seat.where, seat.process)):
            hosts.setdefault(seat.where, []).append(seat)
        return hosts

    @property
    def line(self) -> str:
        """How many there are, what they do and where, in words."""
        if self.crowd:
            return in_words(self.crowd)
        doing = [(kind, sum(seat.doing == kind for seat in self.seats)) for kind in ("busy", "idle", "starting")]
        doing.append(("without a place", sum(seat.doing == "waiting" for seat in self.seats)))
        hosts = [f"{len(seats)} on {host}" for host, seats in self.by_host.items() if seats[0].process]
        parts = [f"{count} {kind}" for kind, count in doing if count]
        return f"{len(self.seats)}: {', '.join(parts)}" + (f" ({', '.join(hosts)})" if hosts else "")


_CREW: TypeAdapter[Crew] = TypeAdapter(Crew)


def in_words(crowd: Crowd) -> str:
    """Return why there is no worker, and until when."""
    return (
        f"none yet: {crowd.pools} searches share the cluster, the others have its {crowd.workers} worker"
        f"{'s' if crowd.workers > 1 else ''}; this one goes on when one of them ends, or a node joins"
    )


@contextmanager
def kept(record: SearchRecord, dispatcher: Dispatcher, say: Callable[[str], None]) -> Iterator[None]:
    """Keep in the record what the workers of ``dispatcher`` do, until the block ends; ``say`` that there are none."""
    said: Crowd | None = None

    def beat() -> None:
        nonlocal said
        save(record, dispatcher)
        crowd = dispatcher.crowd()
        if crowd != said:
            say(f"workers: {in_words(crowd)}" if crowd else "workers: the first has a place")
        said = crowd

    dispatcher.every_few_seconds(beat)
    try:
        yield
    finally:
        mine = crews.c.search_id == record.row.id
        record.store.database.write(lambda c: c.execute(crews.delete().where(mine)), done=lambda _: None)


def save(record: SearchRecord, dispatcher: Dispatcher) -> None:
    """Record what the workers of ``dispatcher`` do now, in place of what they did before."""
    now = time.time()
    seats = [_seat(worker, dispatcher, now) for worker in dispatcher.workers()]
    told = {"seats": [asdict(seat) for seat in seats], "crowd": dispatcher.crowd()}
    row = {"search_id": record.row.id, "workers": json.dumps(told), "seen": now}

    def replace(connection: sa.Connection) -> None:
        connection.execute(crews.delete().where(crews.c.search_id == record.row.id))
        connection.execute(crews.insert(), row)

    record.store.database.write(replace, done=lambda _: None)  # twice does the same as once


def at_work(record: SearchRecord) -> Crew | None:
    """Return the workers of the search as its driver saw them last, or None if no driver runs."""
    return latest(record) if record.store.driver(record.name) else None


def latest(record: SearchRecord) -> Crew | None:
    """Return the workers as a driver saw them last; None if none ever did, or the last one ended on its own."""
    query = crews.select().where(crews.c.search_id == record.row.id)
    row = record.store.database.read(lambda connection: connection.execute(query).first())
    return None if row is None else _crew(row)


@a_row()
def _crew(row: Any) -> Crew:
    told = json.loads(row.workers)
    if isinstance(told, list):  # of older versions
        told = {"seats": told, "crowd": None}
    return _CREW.validate_python({**told, "seen": row.seen})


def _seat(worker: WorkerNow, dispatcher: Dispatcher, now: float) -> Seat:
    task = None if worker.ticket is None else dispatcher.task(worker.ticket)
    place = worker.place
    return Seat(
        doing=worker.doing,
        host=place.host if place else "",
        node=place.node if place else "",
        process=place.process if place else 0,
        since=now - worker.seconds,
        candidate=task.candidate.number if task else None,
        split=task.split if task else None,
    )
