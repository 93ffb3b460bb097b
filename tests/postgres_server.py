"""A real PostgreSQL server of one's own: started in a folder, killed, restarted, removed.

Run as root it works as the user `postgres`, whom Debian's package makes: the server refuses root.
"""

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

USER, PASSWORD = "evomerge", "correct-horse-battery"
READY_WITHIN_SECONDS = 60


def find_binaries() -> Path | None:
    """The folder of the newest `initdb` and `postgres`; None where PostgreSQL is not installed."""
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parent.parent.name)
    )
    found = installed[-1] if installed else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class PostgresServer:
    """Listens on a free port of the loopback interface and wants a password."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        self.folder = Path(tempfile.mkdtemp(prefix="evomerge-pg-"))
        if self._as:
            shutil.chown(self.folder, "postgres", "postgres")
        self._data = self.folder / "data"
        self._process: subprocess.Popen | None = None
        self._numbers = itertools.count()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={password}", "--encoding=UTF8", "--no-sync")
        command = [binaries / "initdb", "-D", self._data, "--locale=C", *options]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, **self._as)
        self.start()

    def url(self, database: str = "postgres") -> str:
        """The storage URL of a database, with the password."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database; return its storage URL."""
        name = f"record_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple]:
        """Run one statement as an administrator; return its rows, if it has any."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = ("listen_addresses=127.0.0.1", "fsync=off", "shared_buffers=16MB", "max_connections=40")
        command = [self._binaries / "postgres", "-D", self._data, "-p", str(self.port), "-k", self.folder]
        for setting in settings:
            command += ["-c", setting]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                list(map(str, command)), cwd=self.folder, stdout=log, stderr=log, start_new_session=True, **self._as
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """End all of the server's processes at once, as a crash would."""
        assert self._process is not None
        family = psutil.Process(self._process.pid)
        for process in (family, *family.children(recursive=True)):
            process.kill()
        self._process.wait()

    def restart(self, away_seconds: float = 0.0) -> None:
        """Kill the server, and start it again after some seconds."""
        self.kill()
        time.sleep(away_seconds)
        self.start()

    def close(self) -> None:
        """Kill the server and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder)

    def _wait_until_ready(self) -> None:
        import psycopg

        give_up = time.monotonic() + READY_WITHIN_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > give_up or self._process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.05)
