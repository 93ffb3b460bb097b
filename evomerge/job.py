"""What a submitted job runs: `evomerge run`, but it waits for the lock of a driver that died with its machine.

The database server takes about a minute to notice that such a driver is gone. A driver that lives is waited for in
vain, and then named by `run`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from evomerge import cli
from evomerge.config import load
from evomerge.errors import UserMistake
from evomerge.store import Store

LOCK_SECONDS = 90.0


def main() -> None:
    """Run or continue the search of the file that the first argument names."""
    with contextlib.suppress(UserMistake):  # `run` meets it again, and says it
        wait_for_the_lock(Path(sys.argv[1]), LOCK_SECONDS)
    sys.argv = ["evomerge", "run", *sys.argv[1:]]
    cli.main()


def wait_for_the_lock(path: Path, seconds: float) -> None:
    """Return when nobody drives the search of the file at ``path``, at the latest after ``seconds``."""
    file = load(path)
    store = Store(file.storage, create=True)
    give_up = time.monotonic() + seconds
    while store.driver(file.name) and time.monotonic() < give_up:
        time.sleep(1.0)
    store.close()


if __name__ == "__main__":
    main()
