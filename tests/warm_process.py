"""The command line in a process of its own that need not import torch and lm-eval again.

A server process has imported what commands need, and forks one child for each: seconds less a command than a fresh
interpreter, and as apart from the tests and from each other.
"""

import multiprocessing
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

PRELOADED = [
    "evomerge.commands",
    "evomerge.runner",
    "evomerge.tables",
    "evomerge.optimizers.cma_es",
    "evaluators.tasks",
]


def run_command(arguments: list[str], folder: Path, environment: dict[str, str]) -> CompletedProcess:
    """Run ``evomerge ARGUMENTS`` in ``folder``, which gets two hidden files, and wait for its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    outputs = folder / ".stdout", folder / ".stderr"
    process = context.Process(target=_command, args=(arguments, folder, environment, outputs))
    process.start()
    process.join()
    out, err = (path.read_text(encoding="utf-8") for path in outputs)
    for path in outputs:
        path.unlink()
    return CompletedProcess(["evomerge", *arguments], process.exitcode, out, err)


def _command(arguments: list[str], folder: Path, environment: dict[str, str], outputs: tuple[Path, Path]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.setsid()
    for descriptor, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["evomerge", *arguments]

    from evomerge.cli import main

    main()
