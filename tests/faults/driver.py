"""A driver of one search on fakes, as a process of its own that faults can strike. Run it again to continue.

`python driver.py OPTIONS.json`; the options are those of `Options`. Exit status as that of `evomerge run`: 0 done, 2 a
mistake of the user's (one line), 1 ours. SIGUSR1 makes the wall clock jump.
"""

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fakes import FakeSpec, problem, search_file

from cluster.pool import WorkersFailed
from evomerge import dispatch, runner
from evomerge.errors import UserMistake
from evomerge.store import Store


@dataclass(frozen=True)
class Options:
    """What a driver is told.

    Attributes:
        folder: where the search's files are.
        file: changes to the search file of the fakes.
        journal: file that gets a line for every evaluation that came back, after its commit.
        seconds: how long an evaluation takes while the file `brake` is there.
        hang: a worker that finds this file takes it away and never returns.
        jumps: seconds by which the wall clock jumps, one after another.
        pages: most pages that the database may have.
    """

    folder: str
    file: dict[str, Any]
    journal: str
    seconds: float = 0.0
    brake: str | None = None
    hang: str | None = None
    jumps: list[float] = field(default_factory=list)
    pages: int | None = None

    def write(self, path: Path) -> Path:
        """Write them for a driver to read."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


class Journal(runner.Silent):
    """Notes every evaluation once it is committed. A line that was written survives the death of the process."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def evaluated(self, candidate, split) -> None:
        """Write a line."""
        os.write(self.file, f"{candidate.number} {split} {candidate.evaluations[split].id}\n".encode())

    def say(self, what) -> None:
        """Tell whoever reads the log."""
        sys.stdout.write(f"{what}\n")
        sys.stdout.flush()


def let_the_clock_jump(jumps: list[float]) -> None:
    real, offset, left = time.time, [0.0], list(jumps)

    def jump(_number, _frame) -> None:
        offset[0] += left.pop(0) if left else 0.0

    time.time = lambda: real() + offset[0]
    signal.signal(signal.SIGUSR1, jump)


def limit_pages(pages: int) -> None:
    @sa.event.listens_for(sa.engine.Engine, "connect")
    def limit(connection, _record) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}").close()


def open_pool(file, spec):
    if file.cluster.backend == "in_process":
        from cluster.in_process import InProcessPool

        return InProcessPool(spec, workers=file.cluster.workers)
    from cluster.ray_pool import RayPool

    return RayPool(spec, workers=file.cluster.workers, cpus_per_worker=file.cluster.cpus_per_worker)


def run(options: Options) -> None:
    """Run or continue the search to its end."""
    file = search_file(Path(options.folder), **options.file)
    watcher = Journal(options.journal)
    store = Store(file.storage, create=True)
    with store.driving(file.name):
        this = problem(file)
        record = runner.open_record(store, this)
        spec = FakeSpec(seconds=options.seconds, brake=options.brake, hang=options.hang)
        with contextlib.closing(open_pool(file, spec)) as pool:
            runner.drive(this, record, pool, watcher)


def main() -> None:
    """Read the options, run, and leave as the command line does."""
    options = Options(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    let_the_clock_jump(options.jumps)
    dispatch.GRACE_SECONDS = 0.0
    if options.pages is not None:
        limit_pages(options.pages)
    status = 0
    try:
        run(options)
    except (UserMistake, WorkersFailed, ConnectionError) as error:
        status = 2 if isinstance(error, UserMistake) else 1
        sys.stderr.write(f"evomerge: {error}\n")
        sys.stderr.flush()
    os._exit(status)  # a worker that hangs in a thread would keep the interpreter


if __name__ == "__main__":
    main()
