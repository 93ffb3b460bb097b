"""Where faults strike: processes found by a mark in their environment, a small disk, a cluster in network namespaces.

Everything is this campaign's own: it ends only processes that carry its mark. As root the nodes of a cluster live in
network namespaces of their own, joined by a bridge, so that the network between them can be cut; otherwise they share
the loopback interface, and a cut is imitated by stopping a node's processes.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
MARK = "EVOMERGE_FAULTS"
DISK_BYTES = 48 * 2**20
TRIES = 4
WORKER, RAYLET = "WorkerHost", "raylet"
_numbers = itertools.count()


def new_mark(name: str) -> str:
    """Return a mark for a process and all that it starts, unlike any other of this machine."""
    return f"{name}-{os.getpid()}-{next(_numbers)}"


def environment(mark: str, **more: str) -> dict[str, str]:
    """Return the environment of a process with ``mark``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **kept,
        MARK: mark,
        "PYTHONPATH": f"{ROOT}:{TESTS}",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        **more,
    }


def marked(mark: str, name: str = "") -> list[psutil.Process]:
    """Return the living processes with ``mark`` whose name contains ``name``."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, psutil.Error):
            if folder.name.isdecimal() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                process = psutil.Process(int(folder.name))
                title = f"{process.name()} {' '.join(process.cmdline()[:1])}"
                if process.status() != psutil.STATUS_ZOMBIE and name in title:
                    found.append(process)
    return sorted(found, key=lambda process: process.pid)


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Wait until ``true()``, at most ``seconds``; return whether it is."""
    give_up = time.monotonic() + seconds
    while not (value := true()):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return value


class NotStarted(Exception):
    """This machine could not start a node: nothing to do with what is tested."""


class Disk:
    """A folder that can be full: a small file system of its own. `is_real` is False where that takes rights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        self.is_real = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0

    def fill(self) -> None:
        """Leave no room."""
        with (self.folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        """Make room again."""
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Give the file system back."""
        if self.is_real:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class Wires:
    """Network namespaces on one bridge, one a node, 10.77.0.1 and up. Needs root."""

    def __init__(self) -> None:
        self.bridge = f"evof{os.getpid() % 10**5}x{next(_numbers) % 1000}"  # at most 15 characters
        self.names: list[str] = []
        self._ip("link", "add", self.bridge, "type", "bridge")
        self._ip("link", "set", self.bridge, "up")

    @staticmethod
    def possible() -> bool:
        """Whether namespaces can be made here."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            return False
        name = f"evof-try-{os.getpid()}"
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
        if made:
            subprocess.run(["ip", "netns", "del", name], check=True)
        return made

    def add(self) -> tuple[str, str]:
        """Make a namespace; return its name and its address."""
        number = len(self.names) + 1
        name, outer, address = f"{self.bridge}n{number}", f"{self.bridge[-10:]}v{number}", f"10.77.0.{number}"
        self._ip("netns", "add", name)
        self.names.append(name)
        self._ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        self._ip("link", "set", outer, "master", self.bridge, "up")
        for what in (("addr", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "lo", "up")):
            self._ip("-n", name, *what)
        self._ip("-n", name, "link", "set", "eth0", "up")
        return name, address

    def cut(self, name: str, *, whole: bool) -> None:
        """Cut (``whole`` False) or mend the wire of a namespace."""
        self._ip("-n", name, "link", "set", "eth0", "up" if whole else "down")

    def close(self) -> None:
        """Remove everything."""
        for name in self.names:
            self._ip("netns", "del", name)
        self._ip("link", "del", self.bridge)

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Node:
    """One raylet with its helpers; the first of a cluster is its head."""

    def __init__(self, cluster: "Cluster", namespace: str | None, address: str, *, head: bool) -> None:
        self.namespace, self.address = namespace, address
        self.mark = new_mark("node")
        where = ["--head", f"--port={cluster.port}", "--include-dashboard=false", f"--temp-dir={cluster.folder}"]
        command = [
            *within(namespace),
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={address}"),
            *(f"--num-cpus={cluster.cpus}", "--object-store-memory=80000000", "--disable-usage-stats"),
            *(where if head else [f"--address={cluster.address}"]),
        ]
        self.log = (cluster.folder / f"{self.mark}.log").open("wb")
        # Ray takes about half a minute to give up a node; tests have less time.
        quick = {"RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "1000"}
        quick |= {"RAY_health_check_failure_threshold": "4", "RAY_health_check_initial_delay_ms": "1000"}
        self.process = subprocess.Popen(
            command,
            env=environment(self.mark, RAY_AUTH_MODE="disabled", **quick),
            cwd=cluster.folder,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Its living processes whose name contains ``name``."""
        return marked(self.mark, name)

    def kill(self) -> None:
        """End everything on it at once."""
        while alive := self.processes():
            send(alive, signal.SIGKILL)
            time.sleep(0.05)
        self.process.wait()
        self.log.close()


class Cluster:
    """A Ray cluster of two nodes with ``cpus`` CPUs each. A driver that wants to join runs beside its head."""

    def __init__(self, *, cpus: int = 1) -> None:
        self.cpus = cpus
        self.folder = Path(tempfile.mkdtemp(prefix="evof-"))  # short: Ray's sockets are in it
        self.wires = Wires() if Wires.possible() else None
        self.places = [self.wires.add() for _ in range(2)] if self.wires else [(None, "127.0.0.1")] * 2
        self.port = 6379 if self.wires else 20_000 + os.getpid() % 10_000
        self.address = f"{self.places[0][1]}:{self.port}"
        self.nodes: list[Node] = []
        try:
            self.head = self._start(*self.places[0], head=True)
            self.second = self.start_second()
        except BaseException:
            self.close()
            raise

    def start_second(self) -> Node:
        """Start the second node, again if it is gone."""
        self.second = self._start(*self.places[1], head=False)
        return self.second

    def _start(self, namespace: str | None, address: str, *, head: bool) -> Node:
        for _ in range(TRIES):  # Ray gives a node half a minute to start, too little on a busy machine
            node = Node(self, namespace, address, head=head)
            self.nodes.append(node)
            if self._is_up(node):
                return node
            node.kill()
        raise NotStarted(f"a node did not start {TRIES} times: {Path(node.log.name).read_text()[-1000:]}")

    def workers(self) -> list[psutil.Process]:
        """The processes of actors on both nodes."""
        return self.head.processes(WORKER) + self.second.processes(WORKER)

    @contextlib.contextmanager
    def partition(self) -> Iterator[None]:
        """Let nothing pass between the second node and the first."""
        if self.wires:
            self.wires.cut(self.second.namespace, whole=False)
        else:
            stopped = self.second.processes()
            send(stopped, signal.SIGSTOP)
        try:
            yield
        finally:
            if self.wires:
                self.wires.cut(self.second.namespace, whole=True)
            else:
                send(stopped, signal.SIGCONT)

    def close(self) -> None:
        """End both nodes."""
        for node in self.nodes:
            node.kill()
        if self.wires:
            self.wires.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _is_up(node: Node) -> bool:
        log = Path(node.log.name)
        until(lambda: "--block" in log.read_text() or node.process.poll() is not None, 150)
        return "--block" in log.read_text() and node.process.poll() is None


def within(namespace: str | None) -> list[str]:
    """Return what a command that runs in ``namespace`` begins with."""
    return ["ip", "netns", "exec", namespace] if namespace else []
