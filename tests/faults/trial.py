"""One search that is struck again and again, continued each time, and checked at its end."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from postgres_server import PostgresServer

from cluster.ray_session import NOT_STARTED

from .checks import WORKERS_GO_WITHIN_SECONDS, Graveyard, Reader, broken, committed, fault_free, lost
from .driver import Options
from .places import RAYLET, TESTS, WORKER, Cluster, Disk, environment, marked, new_mark, send, signal, until, within

STUCK_SECONDS = 120.0
PER_SECOND = 8.0  # evaluations, all workers together, until the last fault has struck
TIMEOUT_SECONDS = 15.0  # longer than a cluster takes to give up a node


@dataclass(frozen=True)
class Fault:
    """A kind of fault that strikes ``delay`` seconds after ``after`` evaluations since the last."""

    kind: str
    after: int
    delay: float


@dataclass(frozen=True)
class Plan:
    """One trial: a platform (in_process, postgresql, ray or cluster), a search, and when what strikes it.

    An `elastic` one has ``workers: auto``; `workers` is then how many fit.
    """

    platform: str
    optimizer: tuple
    workers: int
    evaluations: int
    faults: tuple[Fault, ...]
    jumps: tuple[float, ...] = ()
    elastic: bool = False

    @property
    def in_order(self) -> bool:
        """Whether evaluations must come back in the order of a fault-free run."""
        return self.workers == 1 and "hang" not in {fault.kind for fault in self.faults}


@dataclass
class Report:
    """What happened: faults by kind that struck, those that came too late, and everything that is wrong."""

    struck: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    drivers: int = 0
    reads: int = 0
    refused_reads: int = 0
    seconds: float = 0.0


class Driver:
    """A running driver process."""

    def __init__(self, trial: "Trial", *, pages: int | None = None) -> None:
        self.mark = new_mark("driver")
        number = trial.report.drivers
        trial.report.drivers += 1
        options = trial.options(pages).write(trial.folder / f"options-{number}.json")
        self.log = trial.folder / f"driver-{number}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*within(trial.namespace), sys.executable, str(TESTS / "faults" / "driver.py"), str(options)],
                env=environment(self.mark, **trial.ray_variables),
                cwd=trial.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self.process.poll()

    @property
    def text(self) -> str:
        """What it has written."""
        return self.log.read_text(errors="replace")

    def main(self) -> list:
        """The process of the driver itself."""
        return [p for p in marked(self.mark) if p.pid == self.process.pid]

    def kill(self) -> None:
        """kill -9 of the driver alone."""
        self.process.kill()
        self.process.wait()


class Trial:
    """Runs one plan in a folder of its own."""

    def __init__(
        self,
        plan: Plan,
        graveyard: Graveyard,
        *,
        cluster: Cluster | None = None,
        server: PostgresServer | None = None,
    ) -> None:
        self.plan, self.graveyard, self.cluster, self.server = plan, graveyard, cluster, server
        self.report = Report()
        self.folder = Path(tempfile.mkdtemp(prefix="evof-trial-"))
        self.disk = Disk(self.folder / "disk")
        self.storage = server.new_database() if server else f"sqlite:///{self.disk.folder}/evomerge.db"
        self.journal = self.folder / "journal"
        self.journal.touch()
        self.namespace = cluster.head.namespace if cluster else None
        self.ray_variables = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"} if cluster else {}
        self.hang, self.brake = self.folder / "hang", self.folder / "brake"
        self.brake.touch()
        self.driver: Driver | None = None

    def options(self, pages: int | None) -> Options:
        """What the next driver is told."""
        plan = self.plan
        backend = "ray" if plan.platform in ("ray", "cluster") else "in_process"
        file = {
            "optimizer": dict(plan.optimizer),
            "budget": {"evaluations": plan.evaluations, "finalists": 5},
            "cluster": {
                "backend": backend,
                "workers": "auto" if plan.elastic else plan.workers,
                "cpus_per_worker": 0.5,
            },
            "evaluation": {"timeout_seconds": TIMEOUT_SECONDS},
            "storage": self.storage,
        }
        return Options(
            folder=str(self.folder),
            file=file,
            journal=str(self.journal),
            seconds=plan.workers / PER_SECOND,
            brake=str(self.brake),
            hang=str(self.hang),
            jumps=list(plan.jumps),
            pages=pages,
        )

    def run(self) -> Report:
        """Strike, continue, check."""
        started = time.monotonic()
        fault_free(self.plan.optimizer, self.plan.evaluations)
        try:
            self._strike_all()
            if not self.report.wrong:
                self.report.wrong += self._check()
        finally:
            self._close()
        self.report.seconds = time.monotonic() - started
        return self.report

    def _strike_all(self) -> None:
        reader = Reader(self.storage, "fake")
        try:
            for fault in self.plan.faults:
                self._one(fault)
            self._finish()
        except Stuck as error:
            self.report.wrong.append(str(error))
        finally:
            reader.close()
            if self.driver is not None:
                self.driver.kill()
                self.graveyard.bury(self.driver.mark)
            self.disk.empty()
        self.report.wrong += reader.faults
        self.report.reads, self.report.refused_reads = reader.reads, reader.refused

    # ------------------------------------------------------------ one fault

    def _one(self, fault: Fault) -> None:
        self._start()
        wanted = self.done() + fault.after
        self._until(lambda: self.done() >= wanted, "came to no evaluation")
        time.sleep(fault.delay)
        if self.driver.status is not None:
            self.report.skipped[fault.kind] = self.report.skipped.get(fault.kind, 0) + 1
            self._end_driver(expected={0})
            return
        before = committed(self.storage)
        getattr(self, f"_strike_{fault.kind}")()
        self.report.struck[fault.kind] = self.report.struck.get(fault.kind, 0) + 1
        self.report.wrong += lost(before, self.storage)

    def done(self) -> int:
        """Evaluations that drivers were told are committed."""
        return self.journal.read_bytes().count(b"\n")

    def _start(self) -> None:
        if self.driver is None:
            self.driver = Driver(self)

    def _until(self, true: Callable[[], bool], what: str) -> None:
        """Wait until ``true()`` or the driver's end, as long as it makes progress."""
        before = -1
        while not until(lambda: true() or self.driver.status is not None, STUCK_SECONDS):
            if before == (before := self.done()):
                raise Stuck(f"a driver {what} in {STUCK_SECONDS:.0f} s: {self.driver.text[-1000:]}")
        if self.driver.status == 1 and NOT_STARTED in self.driver.text:
            self.driver = Driver(self)  # a busy machine: nothing to do with the fault
            self._until(true, what)
        elif self.driver.status not in (None, 0):
            raise Stuck(f"a driver ended with {self.driver.status}: {self.driver.text[-1500:]}")

    def _goes_on(self) -> None:
        """The driver must survive and measure more."""
        target = min(self.done() + 3, self.plan.evaluations)
        self._until(lambda: self.done() >= target, "did not go on after the fault")

    def _end_driver(self, expected: set[int]) -> None:
        """Wait for the driver's end and bury it."""
        driver, self.driver = self.driver, None
        try:
            status = driver.process.wait(STUCK_SECONDS)
        except subprocess.TimeoutExpired:
            self.driver = driver
            raise Stuck(f"a driver did not end: {driver.text[-1000:]}") from None
        self.graveyard.bury(driver.mark)
        if status not in expected:
            self.report.wrong.append(f"a driver ended with {status}: {driver.text[-1500:]}")

    # ------------------------------------------------------------ what strikes

    def _strike_driver(self) -> None:
        self.driver.kill()
        self._end_driver({-9})

    def _strike_worker(self) -> None:
        self._strike_one(signal.SIGKILL)
        self._goes_on()

    def _strike_stop(self) -> None:
        """A worker's process stands still: its call ends with the time-out."""
        self._strike_one(signal.SIGSTOP)
        self._goes_on()

    def _strike_one(self, number: signal.Signals) -> None:
        found = self.cluster.workers() if self.cluster else marked(self.driver.mark, WORKER)
        send(found[:1], number)

    def _strike_hang(self) -> None:
        """A worker's call never comes back."""
        self.hang.touch()
        self._until(lambda: not self.hang.exists(), "gave no worker a call")
        self._goes_on()
        self.hang.unlink(missing_ok=True)

    def _strike_raylet(self) -> None:
        if self.cluster is None:  # everything of a private cluster hangs on it
            send(marked(self.driver.mark, RAYLET), signal.SIGKILL)
            self._end_driver({0, 1, 2, -6, -15})
            return
        send(self.cluster.second.processes(RAYLET), signal.SIGKILL)
        self._goes_on()
        self.cluster.second.kill()
        self.cluster.start_second()

    def _strike_node(self) -> None:
        self.cluster.second.kill()
        self._goes_on()
        self.cluster.start_second()

    def _strike_blink(self) -> None:
        """A partition that ends before anybody is given up."""
        with self.cluster.partition():
            time.sleep(0.7)
        self._goes_on()

    def _strike_partition(self) -> None:
        """A partition that outlives the patience of the head."""
        with self.cluster.partition():
            time.sleep(8.0)
            self._goes_on()
        node = self.cluster.second
        if not until(lambda: not node.processes(WORKER), 30):
            self.report.wrong.append("workers of a node that was given up live on")
        node.kill()
        self.cluster.start_second()

    def _strike_disk(self) -> None:
        self.disk.fill()
        until(lambda: self.driver.status is not None, 15)
        if self.driver.status is None:
            self.disk.empty()
            self._goes_on()
            return
        if self.driver.status == 2 and not any(text in self.driver.text for text in ("disk", "No space left")):
            self.report.wrong.append(f"a full disk is not named: {self.driver.text[-500:]}")
        self._end_driver({0, 2})
        self.disk.empty()

    def _strike_pages(self) -> None:
        """A full disk where none can be mounted: the database may not grow."""
        self.driver.kill()
        self._end_driver({-9})
        self.driver = Driver(self, pages=1)
        self._end_driver({0, 2})

    def _strike_server(self) -> None:
        """The database server dies and is back seconds later."""
        self.server.restart(away_seconds=1.5)
        self._goes_on()

    def _strike_clock(self) -> None:
        send(self.driver.main(), signal.SIGUSR1)
        self._goes_on()

    def _strike_twice(self) -> None:
        """The same search again, beside the first."""
        first, self.driver = self.driver, Driver(self)
        second = self.driver
        self._end_driver({0, 2})
        if second.process.returncode == 0 and first.status is None:
            self.report.wrong.append("a second driver ran beside the first")
        if second.process.returncode == 2 and "is being run by another process" not in second.text:
            self.report.wrong.append(f"a second driver is not told of the first: {second.text[-500:]}")
        self.driver = first
        self._goes_on()

    def _strike_race(self) -> None:
        """Two drivers are started at once after the first died."""
        self.driver.kill()
        self._end_driver({-9})
        one, other = Driver(self), Driver(self)
        self.driver = one
        if not until(lambda: one.status is not None or other.status is not None, STUCK_SECONDS):
            raise Stuck("two drivers run one search")
        if one.status is not None:
            one, other = other, one
        self.driver = other
        self._end_driver({0, 2})
        self.driver = one

    # ------------------------------------------------------------ the end

    def _finish(self) -> None:
        self.brake.unlink()
        self._start()
        self._until(lambda: False, "did not finish")
        self._end_driver({0})

    def _check(self) -> list[str]:
        plan = self.plan
        hangs = sum(self.report.struck.get(kind, 0) for kind in ("hang", "stop"))
        wrong = broken(
            self.storage, self.journal, plan.optimizer, plan.evaluations, in_order=plan.in_order, hangs=hangs
        )
        if self.cluster and not until(lambda: not self.cluster.workers(), WORKERS_GO_WITHIN_SECONDS):
            wrong.append(f"{len(self.cluster.workers())} actors outlived the search on the cluster")
        return wrong

    def _close(self) -> None:
        if self.report.wrong:  # keep what can be looked at
            shutil.copytree(self.disk.folder, self.folder / "kept")
        self.disk.close()
        if not self.report.wrong:
            shutil.rmtree(self.folder, ignore_errors=True)


class Stuck(Exception):
    """A trial cannot go on."""
