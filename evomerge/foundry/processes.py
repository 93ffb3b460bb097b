"""Runs training stages in processes of their own, several at a time, and passes on how far they are."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from evomerge.foundry.errors import FoundryError

_LAST_WORDS = 2_000
"""Characters of a crashed stage's log that its error message quotes."""


class _Running(NamedTuple):
    name: str
    process: subprocess.Popen[str]
    output: IO[str]
    log: Path


def run_stages(
    names: Sequence[str],
    folder: Path,
    *,
    processes: int,
    report: Callable[[str, float], None],
) -> None:
    """Runs the stages `names` of a work folder, at most `processes` at once.

    `folder` holds the settings; `report(name, fraction)` is called by this thread as the stages go on.

    Raises:
        FoundryError: a stage did not reach its threshold, or its process ended early. The others are stopped.
    """
    waiting = list(names)
    running: list[_Running] = []
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    stage = _start(waiting.pop(0), folder)
                    running.append(stage)
                    selector.register(stage.output, selectors.EVENT_READ, stage)
                for key, _ in selector.select():
                    stage = key.data
                    line = stage.output.readline()
                    if line:
                        _hear(stage, line, report)
                        continue
                    selector.unregister(stage.output)
                    running.remove(stage)
                    _finish(stage)
                    report(stage.name, 1.0)
        finally:
            for stage in running:
                stage.process.kill()
                stage.process.wait()
                stage.output.close()


def _start(name: str, folder: Path) -> _Running:
    # One thread each: two stages then share two cores without contention, and sums are always in the same
    # order.
    single = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    log = folder / f"{name}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            # -P: the working directory may hold files named like libraries.
            [sys.executable, "-P", "-m", "evomerge.foundry.stage", name, str(folder)],
            env=os.environ | single,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        )
    assert process.stdout is not None
    return _Running(name, process, process.stdout, log)


def _hear(stage: _Running, line: str, report: Callable[[str, float], None]) -> None:
    message = json.loads(line)
    if "error" in message:
        raise FoundryError(message["error"])
    report(stage.name, message["fraction"])


def _finish(stage: _Running) -> None:
    stage.output.close()
    status = stage.process.wait()
    if status != 0:
        words = stage.log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:].strip()
        raise FoundryError(f"the process that trains {stage.name} ended with status {status}: {words or 'no message'}")
    stage.log.unlink()
