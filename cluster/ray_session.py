"""This process's connection to Ray: a private cluster on this machine, or an existing one that is joined.

Ray has one connection per process. Whoever opens it here closes it; sessions and pools opened while it is open share
it. Starting a private cluster takes seconds, so a program that runs several pools one after another holds a session
around them:

    with RaySession():
        with closing(RayPool(first)) as pool: ...
        with closing(RayPool(second)) as pool: ...

A private cluster listens with token authentication, has no dashboard server for browsers, ships no folder to anybody
and sends no usage statistics. Its workers see the driver's environment and import path. On a cluster that is joined
the packages must be installed on every node.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.calls import one_line
from cluster.fair_shares import room
from cluster.ray_environment import RAY_SETS, environment, ray_settings

# Weights never pass through Ray's object store; scores do, and they are small. Ray refuses less than 75 MiB.
OBJECT_STORE_BYTES = 100 * 2**20

# Ray keeps trying an address where nobody listens for many minutes.
HEAD_ANSWERS_WITHIN_SECONDS = 10.0

NOT_STARTED = "Ray did not start on this machine"


class RaySession:
    """An open connection to Ray. Leave the context, or call `close`, to end it.

    Args:
        address: ``host:port`` of a cluster to join, ``"auto"`` for one that runs on this machine, or ``"local"`` for
            a private one. None takes the variable ``RAY_ADDRESS``, or else ``"local"``.
        cpus: how many CPUs a private cluster offers; None for as many as the machine has.
        worker_output: show what workers print in the driver's terminal.

    Raises:
        ValueError: ``address`` is not of that form; URLs are for submitting jobs.
        ConnectionError: there is no cluster at ``address``, or a private one does not start.
    """

    def __init__(self, address: str | None = None, *, cpus: int | None = None, worker_output: bool = False) -> None:
        where = address or os.environ.get("RAY_ADDRESS") or "local"
        if where not in ("local", "auto"):
            _check_head(where)
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(environment(ray_settings(private=where == "local"), also_restored=RAY_SETS))
        self.ray: Any = importlib.import_module("ray")  # only now: Ray reads its settings when it is imported
        self.owned = not self.ray.is_initialized()
        if not self.owned:
            return
        options: dict[str, Any] = {"address": where, "log_to_driver": worker_output}
        if where == "local":
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "num_cpus": cpus}
        try:
            with _callers_signal_handlers(), environment(_private_only(where)):
                self.ray.init(logging_level=logging.ERROR, **options)
        except BaseException as error:
            self._undo.close()
            if where == "local" and isinstance(error, Exception):
                remedy = "Is the machine overloaded or short of memory? Run the same command again"
                raise ConnectionError(f"{NOT_STARTED}: {one_line(error)} {remedy}") from error
            raise

    def capacity(self, needs: Mapping[str, float]) -> int:
        """Return how many workers with ``needs`` (amounts by resource, such as CPU) fit on the nodes that are there."""
        return sum(room(offers, needs) for offers in self._offers())

    def room(self, needs: Mapping[str, float]) -> int:
        """Return how many workers with ``needs`` fit beside what runs on the nodes now."""
        state = importlib.import_module("ray._private.state")
        offers = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        left = state.available_resources_per_node()
        return sum(room(left[node], needs, offers[node]) for node in left.keys() & offers.keys())

    def offered(self) -> dict[str, float]:
        """Return the resources of all nodes that are there now, together."""
        offers = self._offers()
        return {
            kind: sum(each.get(kind, 0.0) for each in offers) for kind in {kind for each in offers for kind in each}
        }

    def _offers(self) -> list[dict[str, float]]:
        """The resources of every node that is there now."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def nodes(self) -> frozenset[str]:
        """Return the ids of the nodes that are there now; the cluster notices the death of one after about 15 s."""
        return frozenset(node["NodeID"] for node in self.ray.nodes() if node["Alive"])

    @property
    def node(self) -> str:
        """Id of the node that this process belongs to."""
        return str(self.ray.get_runtime_context().get_node_id())

    def close(self) -> None:
        """End the connection if this session opened it, and with it a private cluster. Safe to call twice."""
        if self.owned:
            self.owned = False
            self.ray.shutdown()
        self._undo.close()

    def __enter__(self) -> RaySession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_head(address: str) -> None:
    """Raise ValueError unless ``address`` is ``host:port``, ConnectionError unless somebody listens there."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise ValueError(
            f"address: expected host:port of the cluster's head (such as 10.0.0.1:6379), 'auto' or 'local', "
            f"got {address!r}; URLs are for submitting jobs"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), HEAD_ANSWERS_WITHIN_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"address: nobody answers at {address} ({error}); is `ray start --head` running there, "
            "and is the port open from here?"
        ) from error


def _private_only(where: str) -> dict[str, str]:
    """Return what the processes of a private cluster inherit."""
    if where != "local":
        return {}
    return {
        # Workers otherwise get the script's and the current folder, not what the driver added to its path.
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
        "RAY_process_group_cleanup_enabled": "true",  # what a worker has started dies with it
    }


@contextlib.contextmanager
def _callers_signal_handlers() -> Iterator[None]:
    """Give the caller its signal handlers back: `ray.init` replaces the one for SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ray leaves the handlers alone here, and Python would not let us set them
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
