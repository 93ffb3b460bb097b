"""Searches as jobs of a Ray cluster: packing what a job needs, and finding the jobs of a search.

What travels is a folder with the search file, its task folders and its text files; nothing else. Models do not: every
node reads them from where the search file says, so they are Hub ids or folders that all nodes see.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import yaml

import evomerge
from cluster.jobs import Job, JobExists, JobRequest, Jobs, JobsError
from evomerge.config import SearchFile, load
from evomerge.errors import BadSearch, SearchBusy
from evomerge.storage_url import ENVIRONMENT, has_password, is_shared, masked

MOST_BYTES = 100 * 2**20  # Ray keeps the folder in the memory of the head node
SEARCH_FILE = "search.yaml"
COMMAND = ("python", "-m", "evomerge.job", SEARCH_FILE)
SEARCH_TAG, VERSION_TAG, STORAGE_TAG = "evomerge.search", "evomerge.version", "evomerge.storage"
SECRETS = ("TOKEN", "PASSWORD", "SECRET", "KEY", "CREDENTIAL", "PGPASS")


@contextmanager
def open_jobs(address: str) -> Iterator[Jobs]:
    """Talk to the cluster at ``address``.

    Raises:
        BadSearch: it does not answer or refuses, then or later.
    """
    try:
        with closing(Jobs(address)) as jobs:
            yield jobs
    except JobsError as error:
        raise BadSearch(str(error)) from None


def submit(
    jobs: Jobs, path: Path, *, storage: str | None = None, variables: Sequence[str] = (), cpus: float = 1.0
) -> str:
    """Start the search of the file at ``path`` as a job, or continue it; return the job's id.

    Args:
        storage: instead of the search file's.
        variables: ``NAME=VALUE`` or ``NAME``, which takes the value it has here; for the driver and the workers.
        cpus: what the driver reserves.

    Raises:
        BadSearch: the search file is wrong or cannot run on a cluster; the text says why.
        SearchBusy: a job runs this search.
        JobsError: the cluster refuses.
    """
    file = load(path)
    file = file.model_copy(update={"storage": storage or file.storage})
    check_submittable(file)
    found = jobs_of(jobs.all(), file.name)
    for job in found:
        if not job.is_over:
            raise _busy(file.name, job.id)
    with packed(file, path.resolve().parent) as folder:
        request = JobRequest(
            id=_next_id(file.name, found),  # two submissions at once ask for the same one, and one is refused
            command=COMMAND,
            folder=folder,
            tags={
                SEARCH_TAG: file.name,
                VERSION_TAG: evomerge.__version__,
                STORAGE_TAG: masked(file.storage),
            },
            variables=environment_of(variables),
            cpus=cpus,
        )
        try:
            jobs.submit(request)
        except JobExists:
            raise _busy(file.name, request.id) from None
    return request.id


def check_submittable(file: SearchFile) -> None:
    """Refuse a search file that cannot run as a job.

    Raises:
        BadSearch: why, and what would be right.
    """
    if not file.storage.startswith(ENVIRONMENT) and not is_shared(file.storage):
        raise BadSearch(
            f"storage {file.storage}: a job's folder ends with the job, and nobody else could read SQLite in it; "
            "name a PostgreSQL database (postgresql://user@host/database) in the search file or by --storage"
        )
    if has_password(file.storage):
        raise BadSearch(
            f"storage {masked(file.storage)}: everyone who sees the cluster's jobs could read the password; leave "
            "it out and set PGPASSWORD on the cluster's nodes, or write storage: env:NAME for a variable with the URL"
        )
    if file.cluster.backend != "ray":
        raise BadSearch(f"cluster.backend: a job runs on the cluster's Ray; got {file.cluster.backend}")


def environment_of(variables: Sequence[str]) -> dict[str, str]:
    """Return ``variables`` (``NAME=VALUE``, or ``NAME`` with its value here) by name.

    Raises:
        BadSearch: one has no value, or is called like a secret.
    """
    found = {}
    for text in variables:
        name, given, value = text.partition("=")
        if not name or (not given and name not in os.environ):
            raise BadSearch(f"--env {text}: expected NAME=VALUE, or the name of a variable that is set here")
        if any(word in name.upper() for word in SECRETS):
            raise BadSearch(
                f"--env {name}: everyone who sees the cluster's jobs could read it; set it on the cluster's nodes "
                "(a Kubernetes secret, the environment of `ray start`)"
            )
        found[name] = value if given else os.environ[name]
    return found


@contextmanager
def packed(file: SearchFile, home: Path) -> Iterator[Path]:
    """Yield a folder with ``file``, whose search file lies in ``home``, and the task folders and texts that it names.

    What lies under ``home`` keeps its place. Hidden files stay behind.

    Raises:
        BadSearch: it is too large, or a link leads out of a task folder.
    """
    with tempfile.TemporaryDirectory(prefix="evomerge-job-") as name:
        folder = Path(name)
        pack = _Packer(folder, home)
        value: dict[str, Any] = file.model_dump(mode="json")
        for key in ("include_path", "trusted_paths"):
            value["evaluation"][key] = [pack.add(path) for path in value["evaluation"][key]]
        for objective in value["objectives"]:
            if objective.get("file"):
                objective["file"] = pack.add(objective["file"])
        (folder / SEARCH_FILE).write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")
        _check_size(folder)
        yield folder


class _Packer:
    """Copies files and folders into ``folder``, each once."""

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder, self._home = folder, home
        self._places: dict[Path, str] = {}

    def add(self, text: str) -> str:
        """Copy the file or folder ``text``; return its place, relative to the folder."""
        source = Path(text)
        if source in self._places:
            return self._places[source]
        inside = source.is_relative_to(self._home) and source != self._home
        place = str(source.relative_to(self._home)) if inside else f"packed/{len(self._places)}/{source.name}"
        self._places[source] = place
        target = self._folder / place
        if source.is_dir():
            _refuse_links_out(source)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "__pycache__"), dirs_exist_ok=True)
        elif source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        else:
            raise BadSearch(f"{source}: no such file or folder")
        return place


def _refuse_links_out(folder: Path) -> None:
    root = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise BadSearch(f"{path}: a link that leads out of the task folder is not sent to a cluster; copy the file")


def _check_size(folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise BadSearch(
            f"the task folders and texts hold {size / 2**20:.0f} MiB, at most {MOST_BYTES / 2**20:.0f} MiB are sent to "
            "a cluster; put the data where all nodes see it and name it there (dataset_kwargs.data_files)"
        )


def jobs_of(jobs: Sequence[Job], search: str) -> list[Job]:
    """Return those of ``jobs`` that run or ran ``search``, the oldest first."""
    return [job for job in jobs if job.tags.get(SEARCH_TAG) == search]


def find_job(jobs: Sequence[Job], text: str) -> Job:
    """Return the job with the id ``text``, or else the latest job of the search called ``text``.

    Raises:
        BadSearch: there is none; the searches that have one are listed.
    """
    by_id: Mapping[str, Job] = {job.id: job for job in jobs}
    if text in by_id:
        return by_id[text]
    if found := jobs_of(jobs, text):
        return found[-1]
    known = sorted({job.tags[SEARCH_TAG] for job in jobs if SEARCH_TAG in job.tags})
    raise BadSearch(f"no job and no search {text!r} on this cluster (searches there: {', '.join(known) or 'none'})")


def _next_id(name: str, jobs: Sequence[Job]) -> str:
    """NAME-1, NAME-2, ..."""
    used = [job.id.removeprefix(f"{name}-") for job in jobs]
    return f"{name}-{max((int(number) for number in used if number.isdecimal()), default=0) + 1}"


def _busy(name: str, job: str) -> SearchBusy:
    return SearchBusy(
        f"search {name!r} is running as job {job}; it goes on (evomerge logs {name} --follow, evomerge stop {name})"
    )
