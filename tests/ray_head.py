"""A real Ray head with its dashboard and token authentication, as a cluster's would be; and nodes beside it."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
READY_WITHIN_SECONDS = 120


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return found.getsockname()[1]


class RayHead:
    """Started as a user would start it; jobs find this repository's packages."""

    def __init__(self, *, cpus: int, variables: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets need a short path
        self.token = secrets.token_hex(16)
        self.port, dashboard = free_port(), free_port()
        self.address = f"http://{HOST}:{dashboard}"
        binaries = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            **(variables or {}),
        }
        self.environment.pop("RAY_ADDRESS", None)
        # fmt: off
        options = [
            "--head", "--block", f"--node-ip-address={HOST}", f"--port={self.port}", f"--num-cpus={cpus}",
            "--num-gpus=0", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0",
            f"--object-store-memory={100 * 2**20}", f"--temp-dir={self.folder}", "--disable-usage-stats",
        ]
        # fmt: on
        self._log = (self.folder.parent / f"{self.folder.name}.log").open("w+")
        self._process = subprocess.Popen(
            [binaries / "ray", "start", *options], env=self.environment, stdout=self._log, stderr=self._log
        )
        self._wait_until_ready()

    def close(self) -> None:
        """End every process of the cluster."""
        family = [self._process, *psutil.Process(self._process.pid).children(recursive=True)]
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for process in family[1:]:
            if process.is_running():
                process.kill()
        psutil.wait_procs(family[1:], timeout=10)
        self._log.close()
        Path(self._log.name).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait_until_ready(self) -> None:
        request = urllib.request.Request(f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"})
        give_up = time.monotonic() + READY_WITHIN_SECONDS
        while True:
            try:
                urllib.request.urlopen(request, timeout=5).close()
                return
            except OSError as error:
                if time.monotonic() > give_up or self._process.poll() is not None:
                    self._log.seek(0)
                    raise RuntimeError(f"{error}: {self._log.read()[-3000:]}") from None
                time.sleep(0.2)
