"""Commands about the jobs of a Ray cluster: submit, jobs, logs, stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.commands.common import AsJson, SearchPath, print_all, print_json

if TYPE_CHECKING:
    from cluster.jobs import Jobs

ADDRESS = "http://127.0.0.1:8265"
Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="URL of the cluster's dashboard, http://head:8265")
]
JobName = Annotated[str, typer.Argument(metavar="JOB|SEARCH", help="id of a job, or name of a search: its latest job")]
Follow = Annotated[bool, typer.Option("--follow", help="print what the job prints, until it ends")]


def submit(
    search_file: SearchPath,
    address: Address = ADDRESS,
    storage: Annotated[str | None, typer.Option(help="PostgreSQL database, instead of the search file's")] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE or NAME, for driver and workers; no secrets (repeat)")
    ] = None,
    driver_cpus: Annotated[float, typer.Option(help="CPUs of the driver; 0: on the head node", min=0.0)] = 1.0,
    follow: Follow = False,
) -> None:
    """Run a search as a job of a Ray cluster, or continue it there."""
    from evomerge.submission import open_jobs
    from evomerge.submission import submit as submit_search

    with open_jobs(address) as jobs:
        job = submit_search(jobs, search_file, storage=storage, variables=env or (), cpus=driver_cpus)
        typer.echo(f"submitted job {job}; evomerge logs {job} --follow, evomerge stop {job}")
        if follow:
            _follow(jobs, job)


def jobs(address: Address = ADDRESS, as_json: AsJson = False) -> None:
    """List the searches that run or ran as jobs of a Ray cluster."""
    from evomerge.submission import SEARCH_TAG, VERSION_TAG, open_jobs

    with open_jobs(address) as opened:
        found = [job for job in opened.all() if SEARCH_TAG in job.tags]
    if as_json:
        keys = ("id", "state", "started", "ended", "message")
        print_json([{"search": job.tags[SEARCH_TAG]} | {key: getattr(job, key) for key in keys} for job in found])
        return
    if not found:
        typer.echo("no searches on this cluster; evomerge submit SEARCH.YAML starts one")
        return
    from rich.table import Table

    table = Table("job", "search", "state", "started", "evomerge", "message", box=None)
    for job in found:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)) if job.started else ""
        table.add_row(job.id, job.tags[SEARCH_TAG], job.state, started, job.tags.get(VERSION_TAG, ""), job.message)
    print_all(table)


def logs(job: JobName, address: Address = ADDRESS, follow: Follow = False) -> None:
    """Print what a job has printed."""
    from evomerge.submission import find_job, open_jobs

    with open_jobs(address) as jobs:
        found = find_job(jobs.all(), job)
        if follow:
            _follow(jobs, found.id)
        else:
            typer.echo(jobs.logs(found.id), nl=False)


def stop(job: JobName, address: Address = ADDRESS) -> None:
    """Stop a job; nothing that was measured is lost, and submitting the search again continues it."""
    from evomerge.submission import find_job, open_jobs

    with open_jobs(address) as jobs:
        found = find_job(jobs.all(), job)
        if found.is_over:
            typer.echo(f"job {found.id} is over: {found.state}")
            return
        typer.echo(f"job {found.id}: {jobs.stop(found.id).state}")


def _follow(jobs: Jobs, job: str) -> None:
    """Print what the job prints; the exit status is 1 if it fails."""
    try:
        for piece in jobs.follow(job):
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        typer.echo(f"job {job} goes on", err=True)
        return
    ended = jobs.get(job)
    typer.echo(f"job {job}: {ended.state}", err=True)
    if ended.state == "failed":
        raise typer.Exit(1)
