"""How the pools of one cluster share it: everybody gets what he wants, and where that is too much, equal parts.

Pools know of each other by the names of their actors, which a cluster lists. Every pool computes the same shares from
that and keeps to its own: it starts workers when its share grows, and ends those that have finished their call when
it shrinks. Nobody has to be asked, and a pool whose driver dies leaves the list with its actors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

PREFIX = "evomerge-worker"


@dataclass(frozen=True, order=True)
class Demand:
    """What one pool wants of a cluster.

    Attributes:
        pool: the pool's id.
        cpus, gpus: what each worker needs.
        most: how many workers it wants; None for all that it can get.
    """

    pool: str
    cpus: float
    gpus: float
    most: int | None = None

    def actor_name(self, number: int) -> str:
        """Return the name of the pool's actor ``number``."""
        most = "auto" if self.most is None else self.most
        return f"{PREFIX}:{self.pool}:{self.cpus:g}:{self.gpus:g}:{most}:{number}"


def demands_of(actor_names: Iterable[str]) -> list[Demand]:
    """Return the demands of the pools whose actors are called ``actor_names``, each once, in one order for all."""
    found = set()
    for name in actor_names:
        parts = name.split(":")
        if parts[0] == PREFIX and len(parts) == 6:
            most = None if parts[4] == "auto" else int(parts[4])
            found.add(Demand(parts[1], float(parts[2]), float(parts[3]), most))
    return sorted(found)


def room_on_node(offers: Mapping[str, float], *, cpus: float, gpus: float) -> int:
    """Return how many workers of ``cpus`` CPUs and ``gpus`` GPUs each fit where ``offers`` are; one need is above 0."""
    # 0.1 CPU fits ten times into one, whatever binary floats say.
    needs = {"CPU": cpus, "GPU": gpus}
    return min(int(offers.get(kind, 0.0) / need + 1e-9) for kind, need in needs.items() if need > 0)


def shares(demands: Sequence[Demand], room: Callable[[Demand], int]) -> dict[str, int]:
    """Return how many workers each pool gets, by its id: at least one, at most what it wants and what has room.

    ``room`` tells how many of a pool's workers fit on the empty cluster. The parts of the cluster are as equal as
    possible (max-min fairness): what one pool does not want is divided among the others. Whoever gets what whole
    workers leave over depends on the order of ``demands``.
    """
    rooms = {demand.pool: max(1, room(demand)) for demand in demands}
    wanted = {d.pool: 1.0 if d.most is None else min(1.0, d.most / rooms[d.pool]) for d in demands}
    parts = _fair_parts(wanted)
    # Rounding the running total, not every part, gives away all that there is.
    result, given = {}, 0.0
    for demand in demands:
        size = rooms[demand.pool]
        before, given = given, given + parts[demand.pool]
        result[demand.pool] = max(1, _floor(given * size) - _floor(before * size))
    return result


def _fair_parts(wanted: Mapping[str, float]) -> dict[str, float]:
    """Divide 1 among those who want parts of it, the most modest first."""
    left, parts = 1.0, {}
    for position, pool in enumerate(sorted(wanted, key=lambda pool: wanted[pool])):
        parts[pool] = min(wanted[pool], left / (len(wanted) - position))
        left -= parts[pool]
    return parts


def _floor(value: float) -> int:
    return int(value + 1e-9)
