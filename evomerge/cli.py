"""The command line. Exit status: 0 done, 2 the user's mistake (one line), 1 ours, 130 interrupted."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import typer

from evomerge.commands import jobs, models, reading, searching

INTERRUPTED = 130  # what shells report for SIGINT
COMMANDS = (  # in the order of `evomerge --help`
    searching.demo,
    searching.init,
    searching.check,
    searching.run,
    jobs.submit,
    jobs.jobs,
    jobs.logs,
    jobs.stop,
    reading.status,
    reading.front,
    reading.show,
    reading.report,
    reading.dashboard,
    models.export,
    models.merge,
    models.align,
    models.compress,
    models.evaluate,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Finds the best way to merge a set of fine-tuned language models.",
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; users' mistakes are one line, never a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = app(standalone_mode=False)  # commands return nothing; typer turns an interrupt into 130
        if status == INTERRUPTED:
            _stop()
        sys.exit(status)
    except Exception as error:
        known = _status_of(error)
        if known is None:
            raise
        _fail(_text_of(error), known)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _status_of(error: Exception) -> int | None:
    """Return the exit status of an expected error, or None for one of ours."""
    from cluster.pool import WorkersFailed
    from evaluators.errors import TaskError
    from evomerge.errors import UserMistake

    if isinstance(error, UserMistake | TaskError) or hasattr(error, "format_message"):  # the last: typer's own
        return 2
    return 1 if isinstance(error, WorkersFailed) else None


def _text_of(error: Exception) -> str:
    from cluster.calls import one_line
    from cluster.pool import WorkersFailed

    if isinstance(error, WorkersFailed):
        return str(error)  # with the worker's own traceback
    return one_line(error.format_message() if hasattr(error, "format_message") else error)


def _stop() -> None:
    """Leave after an interrupt."""
    from cluster import in_process

    text = "evomerge: stopped; nothing that was measured is lost. Run the same command again to continue\n"
    sys.stderr.write(text)
    if in_process.busy():  # a candidate cannot be stopped inside its thread, where it would crash Python's shutdown
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)


def _fail(text: str, status: int) -> None:
    if text:
        sys.stderr.write(f"evomerge: {text}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
