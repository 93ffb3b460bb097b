"""A real Ray head with its dashboard and token authentication, as a cluster's would be; and nodes beside it."""

import contextlib
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
ATTEMPTS = 2


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
            "RAY_raylet_start_wait_time_s": "120",  # a machine that runs tests is busy
            "HF_HUB_OFFLINE": "1",
            **(variables or {}),
        }
        self.environment.pop("RAY_ADDRESS", None)
        # Without ports of their own, the raylet gives up waiting for its agents on a busy machine.
        agents = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
        ports = [f"--{name}-port={free_port()}" for name in (*agents, "ray-client-server")]
        # fmt: off
        options = [
            "--head", "--block", f"--node-ip-address={HOST}", f"--port={self.port}", f"--num-cpus={cpus}",
            "--num-gpus=0", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}", *ports,
            "--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={100 * 2**20}",
            f"--temp-dir={self.folder}", "--disable-usage-stats",
        ]
        # fmt: on
        command = [binaries / "ray", "start", *options]
        for _ in range(ATTEMPTS):
            self._log = (self.folder.parent / f"{self.folder.name}.log").open("w+")
            self._process = subprocess.Popen(command, env=self.environment, stdout=self._log, stderr=self._log)
            if self._is_ready():
                return
            self._log.seek(0)
            text = self._log.read()
            self.close()
        raise RuntimeError(text[-3000:])

    def close(self) -> None:
        """End every process of the cluster."""
        family = [p for p in psutil.process_iter() if self._is_ours(p)]
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=10)
        self._log.close()
        Path(self._log.name).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.pid == self._process.pid or str(self.folder) in " ".join(process.cmdline())
        return False

    def _is_ready(self) -> bool:
        """Wait until the head answers; False if it gives up before."""
        request = urllib.request.Request(f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"})
        while self._process.poll() is None:
            time.sleep(0.2)
            if "Ray runtime started" in Path(self._log.name).read_text():
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(request, timeout=10).close()
                    return True
        return False
