"""Jobs of a Ray cluster, through its Jobs API: submit, list, read the output, stop.

A job is a command that the cluster runs in a copy of a folder. It has tags, which anybody who may look at the
cluster can read; so no secret belongs into a tag, a variable or the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from cluster.calls import one_line
from cluster.ray_environment import RAY_SETS, environment, ray_settings, token

T = TypeVar("T")
JobState = Literal["pending", "running", "stopped", "succeeded", "failed"]
ENDED: tuple[JobState, ...] = ("stopped", "succeeded", "failed")
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 120.0
STOPPED_WITHIN_SECONDS = 30.0
ALIVE_SECONDS = 20.0  # a job that prints nothing for so long is asked for
HEADERS_VARIABLE = "RAY_JOB_HEADERS"  # JSON; Ray's own command line reads it too


class JobsError(ValueError):
    """The cluster does not answer, or refuses; the text says why, on one line."""


class JobExists(JobsError):
    """There is a job of this id already."""


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it. Times are seconds since the epoch.

    Attributes:
        id: chosen by whoever submitted it.
        message: what the cluster says about its state.
    """

    id: str
    state: JobState
    message: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None

    @property
    def is_over(self) -> bool:
        """It will not go on."""
        return self.state in ENDED


@dataclass(frozen=True)
class JobRequest:
    """What a job shall be.

    Attributes:
        command: the command line; it runs in a copy of ``folder``.
        variables: environment of the command and of its workers, readable by all who see the cluster.
        cpus: what the command itself reserves; with 0 it runs on the head node.
    """

    id: str
    command: Sequence[str]
    folder: Path
    tags: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 1.0


class Jobs:
    """The jobs of the cluster whose head serves its dashboard at ``address`` (``http://host:8265``).

    A token for the cluster is read from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ``~/.ray/auth_token``, other headers
    from RAY_JOB_HEADERS (JSON).

    Raises:
        JobsError: ``address`` is no such URL, nobody answers there, or the token is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise JobsError(f"address: expected the URL of the cluster's dashboard (http://host:8265), got {address!r}")
        self.address = address
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(environment(ray_settings(private=False), also_restored=RAY_SETS))
        self._undo.enter_context(_quiet())
        try:
            self._client: Any = self._ask(lambda: _client_class()(address, headers=_headers()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the process its environment back."""
        self._undo.close()

    def submit(self, request: JobRequest) -> None:
        """Start a job.

        Raises:
            JobExists: there is a job of this id.
            JobsError: the cluster does not take it.
        """
        runtime = {"working_dir": str(request.folder), "env_vars": dict(request.variables)}
        try:
            self._ask(
                lambda: self._client.submit_job(
                    entrypoint=shlex.join(request.command),
                    submission_id=request.id,
                    runtime_env=runtime,
                    metadata=dict(request.tags),
                    entrypoint_num_cpus=request.cpus or None,
                )
            )
        except JobsError as error:
            if "already exists" in str(error):
                raise JobExists(f"job {request.id!r} exists already") from None
            raise

    def all(self) -> list[Job]:
        """Return all submitted jobs, the oldest first."""
        found = [_job(details) for details in self._ask(self._client.list_jobs) if details.submission_id]
        return sorted(found, key=lambda job: (job.started or 0.0, job.id))

    def get(self, job: str) -> Job:
        """Return one job by its id."""
        return _job(self._ask(lambda: self._client.get_job_info(job)))

    def logs(self, job: str) -> str:
        """Return what the job has printed so far."""
        return cast(str, self._ask(lambda: self._client.get_job_logs(job)))

    def follow(self, job: str) -> Iterator[str]:
        """Yield what the job prints, from its beginning until it is over."""
        self.get(job)
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            pieces = self._client.tail_job_logs(job)
            try:
                while (piece := self._ask(lambda: self._next(loop, pieces, job))) is not None:
                    yield piece
            finally:
                loop.run_until_complete(pieces.aclose())

    def _next(self, loop: asyncio.AbstractEventLoop, pieces: Any, job: str) -> str | None:
        """The next piece, or None at the end; where nothing comes, the cluster is asked whether the job lives."""
        waiting = loop.create_task(_piece(pieces))
        try:
            while not loop.run_until_complete(asyncio.wait([waiting], timeout=ALIVE_SECONDS))[0]:
                if self.get(job).is_over:
                    return None
            return waiting.result()
        finally:
            if waiting.cancel():
                loop.run_until_complete(asyncio.wait([waiting]))

    def stop(self, job: str) -> Job:
        """Ask the job to end, wait until it has, and return it.

        Raises:
            JobsError: it does not end within 30 seconds.
        """
        self._ask(lambda: self._client.stop_job(job))
        give_up = time.monotonic() + STOPPED_WITHIN_SECONDS
        while not (found := self.get(job)).is_over:
            if time.monotonic() > give_up:
                raise JobsError(f"job {job!r} was told to stop and is still {found.state}; look at the cluster")
            time.sleep(0.2)
        return found

    def _ask(self, question: Callable[[], T]) -> T:
        """Call ``question``; what goes wrong between here and the cluster is a `JobsError`."""
        try:
            return question()
        except (ConnectionError, OSError) as error:  # requests' errors are OSErrors
            text = f"nobody answers at {self.address} ({_first_line(error)})"
            raise JobsError(f"{text}; does the head run with its dashboard, and is the port open from here?") from None
        except (RuntimeError, ValueError) as error:
            if isinstance(error, JobsError):
                raise
            raise JobsError(f"{self.address}: {_reason(str(error))}") from None
        except Exception as error:
            if type(error).__name__ != "AuthenticationError":
                raise
            remedy = "give this cluster's token by RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            raise JobsError(f"{self.address}: {_first_line(error)}; {remedy}") from None


async def _piece(pieces: Any) -> str | None:
    return cast("str | None", await anext(pieces, None))


def _client_class() -> Any:
    """Ray's client, with time-outs."""
    base: Any = importlib.import_module("ray.job_submission").JobSubmissionClient

    class Client(base):  # type: ignore[misc]
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            options.setdefault("timeout", (CONNECT_SECONDS, ANSWER_SECONDS))
            return super()._do_request(method, endpoint, **options)

    return Client


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray's client tells of each of its steps."""
    logger = logging.getLogger("ray")
    before = logger.level
    try:
        importlib.import_module("ray")  # sets the level
        logger.setLevel(logging.WARNING)
        yield
    finally:
        logger.setLevel(before)


def _headers() -> dict[str, str]:
    """What every request carries. Ray would show the first token that it saw in this process."""
    text = os.environ.get(HEADERS_VARIABLE) or "{}"
    try:
        headers = json.loads(text)
    except ValueError:
        headers = None
    if not isinstance(headers, dict):
        raise JobsError(f"{HEADERS_VARIABLE}: expected a JSON object, got something else")
    known = token()
    if known is not None and not any(name.lower() == "authorization" for name in headers):
        headers["Authorization"] = f"Bearer {known}"
    return {str(name): str(value) for name, value in headers.items()}


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id or details.job_id,
        state=cast(JobState, str(details.status.value).lower()),
        message=one_line(details.message or ""),
        tags=dict(details.metadata or {}),
        started=_seconds(details.start_time),
        ended=_seconds(details.end_time),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


def _reason(text: str) -> str:
    """The last line of an answer that may hold a traceback of the server's."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "the cluster gave no reason"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
