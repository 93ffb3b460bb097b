"""What happens on a Ray cluster, seen from a thread of its own: nodes that come and go, pools that share it.

Pools tell each other what they hold through the key-value store of the cluster's head: one small JSON text per pool,
with a number that grows while its driver lives. A text that has stood still for `SILENT_SECONDS` of the reader's own
clock belongs to the dead and no longer counts. So nothing runs on the cluster for this, no clock needs to be right, and
a search that is killed leaves nothing that holds its share.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.fair_shares import Claim, fair_shares
from cluster.ray_session import RaySession

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 3.0
SILENT_SECONDS = 20.0  # without a sign of life the share of a pool returns to the others
FORGOTTEN_SECONDS = 600.0  # after which its text is removed
CLOSE_SECONDS = 5.0
NAMESPACE = b"evomerge"
PREFIX = b"pool:"


@dataclass(frozen=True)
class View:
    """What was seen at one moment.

    Attributes:
        nodes: ids of the nodes that are there.
        here: whether Ray's process on this machine lives; without it no worker can be started.
        share: how many workers this pool shall have, so that all that share the cluster have as many.
        room: how many more would fit on the nodes now.
        pools: how many pools share the cluster.
        taken: how many workers the others hold.
    """

    nodes: frozenset[str]
    here: bool
    share: int
    room: int
    pools: int = 1
    taken: int = 0


class Watch:
    """Looks at the cluster every few seconds; `view` is what it saw last.

    Args:
        needs: what each worker of this pool reserves, by resource.
        most: workers that this pool can use; None for as many as there are.
        pool: a name that no other living pool has, by which one that takes the place of a dead one is known; by
            default one that nobody ever had.
    """

    def __init__(
        self, session: RaySession, needs: Mapping[str, float], most: int | None, *, pool: str | None = None
    ) -> None:
        self.held = 0  # the pool keeps both up to date
        self.needed = math.inf
        self._session = session
        self._needs = dict(needs)
        self._most = math.inf if most is None else most
        self._key = PREFIX + (pool or uuid.uuid4().hex).encode()
        self._beats = 0
        self._heard: dict[bytes, tuple[Any, float]] = {}  # the last text of every pool, and since when
        self._stop = threading.Event()
        self.view = self._look()
        self._thread = threading.Thread(target=self._go_on, name="ray-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking, and give the share back. Safe to call twice."""
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)
        if self._session.ray.is_initialized() and not self._thread.is_alive():  # else the head does not answer
            self._board.delete(self._key)

    @property
    def _board(self) -> _Board:
        return _Board(self._session.ray)

    def _go_on(self) -> None:
        while not self._stop.wait(LOOK_EVERY_SECONDS):
            try:
                self.view = self._look()
            except Exception as error:  # the head is away; whoever waits for a call hears of it from Ray
                logger.debug("the cluster cannot be seen: %s", error)

    def _look(self) -> View:
        self._beats += 1
        others = list(self._others())
        most = min(self._most, self.needed) if others else self._most  # alone it keeps workers that it may need again
        told = {
            "needs": self._needs,
            "held": self.held,
            "most": None if most == math.inf else most,
            "beat": self._beats,
        }
        self._board.put(self._key, json.dumps(told).encode())
        own = self._key.decode()  # as the others read it: all must rank pools alike
        claims = [Claim(own, self._needs, self.held, most), *others]
        room = self._session.room(self._needs)
        # All that pools hold, and what is left as far as this pool can use it: a rest on a node that no worker fits
        # into is nobody's, and what others run on the cluster is theirs.
        whole: dict[str, float] = {kind: need * room for kind, need in self._needs.items()}
        for claim in claims:
            for kind, need in claim.needs.items():
                whole[kind] = whole.get(kind, 0.0) + need * claim.held
        offered = self._session.offered()
        whole = {kind: min(amount, offered.get(kind, 0.0)) for kind, amount in whole.items()}
        share = min(fair_shares(claims, whole)[own], self._session.capacity(self._needs))
        nodes = self._session.nodes()
        taken = sum(claim.held for claim in others)
        return View(nodes, self._session.node in nodes, share, room, len(claims), taken)

    def _others(self) -> Iterator[Claim]:
        """What the other living pools ask for."""
        now = time.monotonic()
        for key in self._board.all():
            text = None if key == self._key else self._board.get(key)
            if text is None:
                continue
            before, since = self._heard.get(key, (None, now))
            self._heard[key] = (text, now if text != before else since)
            silent = now - self._heard[key][1]
            if silent > FORGOTTEN_SECONDS:
                self._board.delete(key)
            elif silent <= SILENT_SECONDS and (claim := _claim(key, text)) is not None:
                yield claim


class _Board:
    """Small texts that all drivers of a cluster can read and write."""

    def __init__(self, ray: Any) -> None:
        self._store = ray.experimental.internal_kv

    def put(self, key: bytes, text: bytes) -> None:
        self._store._internal_kv_put(key, text, namespace=NAMESPACE)

    def get(self, key: bytes) -> bytes | None:
        text: bytes | None = self._store._internal_kv_get(key, namespace=NAMESPACE)
        return text

    def all(self) -> list[bytes]:
        found: list[bytes] = self._store._internal_kv_list(PREFIX, namespace=NAMESPACE)
        return found

    def delete(self, key: bytes) -> None:
        self._store._internal_kv_del(key, namespace=NAMESPACE)


def _claim(key: bytes, text: bytes) -> Claim | None:
    """What a pool has told, or None for what no pool of this version tells."""
    try:
        told = json.loads(text)
        needs = {str(kind): float(need) for kind, need in told["needs"].items()}
        if not any(need > 0 for need in needs.values()):
            return None
        most = math.inf if told["most"] is None else float(told["most"])
        return Claim(key.decode(), needs, max(0, int(told["held"])), most)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
