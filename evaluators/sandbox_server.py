"""The helper process in which executed code is judged; `evaluators.sandbox` starts it and speaks JSON lines with it.

It loads the task once. For every document it forks a child of its own session in an empty folder, with limits on
time, memory, files and processes and without a network where the kernel allows that; then it ends whatever the child
has left behind.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

import numpy as np
import psutil

from evaluators.errors import MeasurementFailed, OverLimits, one_line
from evaluators.evaluation import FailureKind
from evaluators.judging import Judge
from evaluators.objective import EvaluationSettings, Objective
from evaluators.plan import TaskPart
from evaluators.scoring import LogLikelihoods
from evaluators.tasks import TaskSuite

MOST_PROCESSES = 64  # of one document, the judge's own child included
_MOST_FILE_BYTES = 64 * 2**20
_MOST_RESULT_BYTES = 2**20
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serve until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    _silence()
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a child leaves behind becomes ours, to be ended
    server: _Server | None = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if server is None:
                server = _Server(message)
                answer: dict[str, Any] = {}
            else:
                answer = server.judge(message)
        except MeasurementFailed as failed:
            answer = _failure(failed.kind, str(failed), over_limits=isinstance(failed, OverLimits))
        except Exception as error:
            answer = _failure(FailureKind.METRIC_ERROR, f"{type(error).__name__}: {one_line(error)}")
        _send(replies, answer)


class _Server:
    """One loaded task."""

    def __init__(self, hello: dict[str, Any]) -> None:
        self._settings = EvaluationSettings.model_validate(hello["settings"])
        objectives = [Objective.model_validate(value) for value in hello["objectives"]]
        self._loaded = next(iter(TaskSuite.load(objectives, self._settings).loaded.values()))

    def judge(self, message: dict[str, Any]) -> dict[str, Any]:
        """Judge one document in a child under limits.

        Raises:
            OverLimits: it ran out of them, or died.
        """
        reading, writing = os.pipe()
        with tempfile.TemporaryDirectory(prefix="document-", ignore_cleanup_errors=True) as folder:
            child = os.fork()
            if child == 0:
                os.close(reading)
                self._in_child(message, folder, writing)
            os.close(writing)
            try:
                return _answer(self._watch(child, reading, message["document"]), message["document"])
            finally:
                os.close(reading)
                _end_descendants()

    def _in_child(self, message: dict[str, Any], folder: str, writing: int) -> None:
        """Judge and leave; never returns."""
        status = 1
        try:
            _limit(self._settings, folder)
            answer = self._judged(message)
            os.write(writing, json.dumps(answer).encode()[:_MOST_RESULT_BYTES])
            status = 0
        except MemoryError:
            os.write(writing, json.dumps(_out_of_memory(self._settings, message["document"])).encode())
            status = 0
        finally:
            os._exit(status)

    def _judged(self, message: dict[str, Any]) -> dict[str, Any]:
        part = _part(self._loaded.name, message)
        answers = message["answers"]
        texts: Sequence[str] = answers if part.generates else ()
        pairs = [] if part.generates else answers
        likelihoods = LogLikelihoods(
            np.array([value for value, _ in pairs], dtype=np.float64), np.array([g for _, g in pairs], dtype=bool)
        )
        try:
            scores = Judge(self._loaded, part).scores(likelihoods=likelihoods, texts=texts)
        except MeasurementFailed as failed:
            if isinstance(failed.__cause__, MemoryError):
                return _out_of_memory(self._settings, message["document"])
            return _failure(failed.kind, str(failed))
        return {"scores": {name: score.value for name, score in scores.items()}}

    def _watch(self, child: int, reading: int, document: int) -> bytes:
        """Return what the child wrote before it ended.

        Raises:
            OverLimits: its time is over, it started too many processes, or a signal ended it.
        """
        where = f"task {self._loaded.name}, document {document}"
        seconds = self._settings.code_seconds_per_document
        end, found, open_ = time.monotonic() + seconds + 1.0, b"", True
        while True:
            if open_ and select.select([reading], [], [], _POLL_SECONDS)[0]:
                piece = os.read(reading, 1 << 16)
                found, open_ = found + piece, bool(piece) and len(found) < _MOST_RESULT_BYTES
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                raise OverLimits(FailureKind.TIMED_OUT, f"{where}: judging took more than {seconds:g} s")
            if len(psutil.Process().children(recursive=True)) > MOST_PROCESSES:
                raise OverLimits(
                    FailureKind.METRIC_ERROR, f"{where}: the code started more than {MOST_PROCESSES} processes"
                )
            if not open_:
                time.sleep(_POLL_SECONDS)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
            raise OverLimits(FailureKind.TIMED_OUT, f"{where}: judging took more than {seconds:g} s of CPU time")
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            raise OverLimits(FailureKind.METRIC_ERROR, f"{where}: {name} ended the judging process")
        while open_ and select.select([reading], [], [], 0)[0] and (piece := os.read(reading, 1 << 16)):
            found += piece
        return found


def _part(task: str, message: dict[str, Any]) -> TaskPart:
    counts = np.array([len(message["answers"])], dtype=np.int64)
    return TaskPart(task, (int(message["document"]),), counts, 0, bool(message["generates"]))


def _answer(written: bytes, document: int) -> dict[str, Any]:
    try:
        answer: Any = json.loads(written)
    except ValueError:
        answer = None
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if isinstance(answer, dict) and "failure" in answer:
        return {"failure": answer["failure"]}
    if not isinstance(scores, dict) or not all(
        isinstance(v, float | int) and math.isfinite(v) for v in scores.values()
    ):
        raise OverLimits(FailureKind.METRIC_ERROR, f"document {document}: the judging process gave no scores")
    return {"scores": scores}


def _failure(kind: FailureKind, message: str, *, over_limits: bool = False) -> dict[str, Any]:
    return {"failure": {"kind": kind.value, "message": message, "over_limits": over_limits}}


def _out_of_memory(settings: EvaluationSettings, document: int) -> dict[str, Any]:
    text = f"document {document}: the code wanted more than {settings.code_memory_mib} MiB of memory"
    return _failure(FailureKind.OUT_OF_MEMORY, text, over_limits=True)


def _limit(settings: EvaluationSettings, folder: str) -> None:
    """Give this process its limits; it cannot raise them again."""
    os.setsid()
    os.chdir(folder)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _LIBC.unshare(_CLONE_NEWNET):  # not ours to do: a user namespace of our own may allow it
        _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    here = psutil.Process().memory_info().vms
    cpu = math.ceil(settings.code_seconds_per_document)
    threads = sum(process.info["num_threads"] or 0 for process in psutil.process_iter(["num_threads"]))
    limits = {
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_AS: here + settings.code_memory_mib * 2**20,
        resource.RLIMIT_FSIZE: _MOST_FILE_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: threads + MOST_PROCESSES,
    }
    for kind, limit in limits.items():
        hardest = resource.getrlimit(kind)[1]
        limit = limit if hardest == resource.RLIM_INFINITY else min(limit, hardest)
        # the second bound of CPU time kills: the first sends a signal that can be caught
        resource.setrlimit(kind, (limit, limit + (kind == resource.RLIMIT_CPU and hardest == resource.RLIM_INFINITY)))


def _end_descendants() -> None:
    """Kill everything that children have started, until nothing is left."""
    while children := psutil.Process().children(recursive=True):
        for signal_ in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none forks while others are killed
            for process in children:
                with suppress(psutil.Error, ProcessLookupError):
                    process.send_signal(signal_)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.001)


def _silence() -> None:
    """Task code may print; the terminal is not ours, and standard output carries the answers."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        os.dup2(nothing, number)


def _send(replies: TextIO, answer: dict[str, Any]) -> None:
    replies.write(json.dumps(answer) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
