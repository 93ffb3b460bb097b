"""A driver that keeps an elastic pool busy and says, as JSON lines, how many workers it has."""

import json
import os
import sys
import time
from contextlib import closing

from cluster import ray_watch
from cluster.pool import Call, Returned
from cluster.ray_pool import RayPool
from cluster.testing import Probe

CALL_SECONDS = 0.2


class Slow(Probe):
    """Its calls take a moment."""

    def work(self):
        """Take it, and say where."""
        time.sleep(CALL_SECONDS)
        return os.getpid()


def main() -> None:
    """Go on until somebody ends it."""
    ray_watch.LOOK_EVERY_SECONDS, ray_watch.SILENT_SECONDS = 0.3, 3.0
    outcomes: dict[str, int] = {}
    seen: dict[int, float] = {}  # when a call of a process came back last
    with closing(RayPool(Slow)) as pool:
        while True:
            while pool.free:
                pool.submit(Call("work"))
            for finished in pool.wait(CALL_SECONDS):
                kind = type(finished.outcome).__name__
                outcomes[kind] = outcomes.get(kind, 0) + 1
                if isinstance(finished.outcome, Returned):
                    seen[finished.outcome.value] = time.monotonic()
            working = sum(time.monotonic() - at < 10 * CALL_SECONDS for at in seen.values())
            said = {"workers": pool.workers, "working": working, "outcomes": outcomes}
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
