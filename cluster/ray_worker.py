"""The worker's side of the Ray pool: what lives in the process of an actor."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

from cluster.calls import make_worker, perform, raised
from cluster.pool import Place, Raised


class WorkerHost:
    """Holds one worker and runs its calls, one at a time.

    Everything crosses the border as bytes that are pickled and unpickled inside a ``try``: arguments, results and
    factories that cannot be are outcomes of the call, not failures of the process.

    Args:
        threads: what numerical libraries may use in this process; they read it when they are first imported.
    """

    def __init__(self, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        # Ray reads its settings when it is imported: not before the driver's session has made them.
        from ray import cloudpickle

        self._dumps: Callable[[Any], bytes] = cloudpickle.dumps  # also knows classes of the driver's __main__
        self._worker: Any = None

    def place(self) -> Place:
        """Return where this process runs."""
        import ray

        return Place(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid())

    def start(self, factory: bytes) -> Raised | None:
        """Make the worker from the pickled ``factory``; return what went wrong, or None."""
        made = make_worker(lambda: pickle.loads(factory)())  # noqa: S301 - from the driver, not from a disk
        if isinstance(made, Raised):
            return made
        self._worker = made.value
        return None

    def run(self, call: bytes) -> bytes:
        """Run the pickled ``(method, arguments)``; return the pickled `Returned` or `Raised`."""
        try:
            method, arguments = pickle.loads(call)  # noqa: S301 - from the driver, not from a disk
            return self._dumps(perform(self._worker, method, arguments))
        except Exception as error:
            return pickle.dumps(raised(error))
