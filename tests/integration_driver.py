"""Runs the command line as a user would, in a folder of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml
from warm_process import run_command

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}


class Driver:
    """Runs the command line in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = ENVIRONMENT

    def write(self, foundry, **changes) -> dict:
        """Write search.yaml for the experts of ``foundry``."""
        value = {
            "name": "small",
            "sources": {
                "base": str(foundry.base),
                "experts": list(map(str, foundry.experts.values())),
                "dtype": "float32",
            },
            "space": {"operator": "task_arithmetic", "layer_groups": 3},
            "objectives": [
                {"task": "rev_j", "metric": "exact_match"},
                {"task": "rev_e_mc", "metric": "acc"},
            ],
            "evaluation": {
                "search_documents": 32,
                "validation_documents": 64,
                "test_documents": 256,
                "include_path": [str(foundry.tasks)],
            },
            "optimizer": {"seed": 1},
            "baselines": {"single_coefficient": 4},
            "budget": {"evaluations": 60, "finalists": 4},
            "cluster": {"backend": "in_process"},
            **changes,
        }
        (self.folder / "search.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
        return value

    def command(self, *arguments) -> list[str]:
        """The command line for ``arguments``."""
        return [sys.executable, "-m", "evomerge.cli", *map(str, arguments)]

    def start(self, *arguments) -> subprocess.Popen:
        """Start a command and return its process."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments, status=0) -> subprocess.CompletedProcess:
        """Run a command to its end and check its exit status."""
        done = run_command(list(map(str, arguments)), self.folder, {**os.environ, **self.environment})
        assert done.returncode == status, done.stderr[-3000:] + done.stdout[-1000:]
        return done

    def results(self):
        """The record so far."""
        import evomerge

        return evomerge.load("small", storage=f"sqlite:///{self.folder}/evomerge.db")

    def spent(self) -> int:
        """New evaluations recorded so far; 0 before the record exists."""
        from evomerge.errors import BadSearch

        try:
            return self.results().spent
        except BadSearch:
            return 0

    def wait_until_spent(self, count: int, process: subprocess.Popen) -> None:
        """Wait until ``process`` has recorded ``count`` evaluations."""
        while self.spent() < count:
            assert process.poll() is None, process.stderr.read()[-3000:]
            time.sleep(0.05)
