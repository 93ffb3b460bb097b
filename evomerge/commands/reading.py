"""Commands that read the record of searches."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

import evomerge
from evomerge.commands.common import AsJson, SearchName, Storage, compared, open_search, print_all, print_json

if TYPE_CHECKING:
    from evomerge.results import Results

FEWEST_TOKEN_CHARACTERS = 8


def status(search: SearchName, storage: Storage = evomerge.DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Say where a search stands."""
    from evomerge import tables

    results = open_search(search, storage)
    if as_json:
        print_json(tables.status_json(results))
    else:
        typer.echo("\n".join(tables.status_lines(results)))


def front(
    search: SearchName,
    predicted: Annotated[bool, typer.Option("--predicted", help="what a map search predicts; not evaluated")] = False,
    portfolio: Annotated[bool, typer.Option("--portfolio", help="the best of every behaviour, as cycle_qd")] = False,
    storage: Storage = evomerge.DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Print the Pareto front, and the comparison on test documents once it is there."""
    from evomerge import tables

    results = open_search(search, storage)
    if predicted:
        _print_predicted(results, as_json)
        return
    members = results.portfolio if portfolio else results.front
    if as_json:
        print_json([tables.candidate_json(results, candidate) for candidate in members])
        return
    print_all(tables.front_table(results, members, "Portfolio" if portfolio else "Pareto front"))
    if rows := results.table(compared(results)):
        print_all(tables.comparison_table(rows, results.chooser.names))


def _print_predicted(results: Results, as_json: bool) -> None:
    from evomerge.predicted import predict

    found = predict(results)
    if as_json:
        print_json(found.to_json())
    else:
        print_all(found.table(results.record.name))


def show(
    search: SearchName,
    candidate: Annotated[str, typer.Argument(help="number of a candidate, or best")],
    storage: Storage = evomerge.DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Print one candidate: scores, genome, recipe."""
    from evomerge import tables

    results = open_search(search, storage)
    found = results.pick(candidate)
    if as_json:
        print_json({**tables.candidate_json(results, found), "recipe": json.loads(found.recipe_json)})
        return
    print_all(tables.candidate_table(results, found))
    if found.genome is not None:
        print_all(tables.gene_table(results, found))
    typer.echo(f"export: evomerge export {results.record.name} --candidate {found.number} --to FOLDER")


def report(
    search: SearchName,
    output: Annotated[str, typer.Option("--output", "-o", help="HTML file to write, or a URL")] = "report.html",
    storage: Storage = evomerge.DEFAULT_STORAGE,
) -> None:
    """Write one self-contained HTML file: front, progress, the winner's recipe, test scores."""
    from evomerge.report import write_report
    from evomerge.targets import shown

    results = open_search(search, storage)
    write_report(results, output, others=compared(results))
    typer.echo(f"wrote {shown(output)}")


def dashboard(
    search: Annotated[str | None, typer.Argument(metavar="[SEARCH]", help="open this search, not the list")] = None,
    storage: Storage = evomerge.DEFAULT_STORAGE,
    host: Annotated[str, typer.Option(help="address to listen on; from elsewhere a token is asked for")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one", min=0, max=65535)] = 8050,
    token: Annotated[
        str | None, typer.Option(help="what visitors must know; made up if others can reach the address")
    ] = None,
) -> None:
    """Show the searches of a record in a browser, live while they run."""
    from evomerge.errors import UserMistake

    if token is not None and len(token) < FEWEST_TOKEN_CHARACTERS:
        raise UserMistake(f"--token: expected at least {FEWEST_TOKEN_CHARACTERS} characters, got {len(token)}")
    try:
        from evomerge.dashboard.app import Server
    except ModuleNotFoundError as error:
        raise UserMistake(
            f"the dashboard needs {error.name}: pip install 'evomerge[dashboard]' installs what is missing"
        ) from None
    name = None
    if search:
        record = open_search(search, storage).record
        name, storage = record.name, record.store.storage
    server = Server(storage, host=host, port=port, token=token)
    typer.echo(f"dashboard: {server.address(name)} (Ctrl-C ends it)")
    try:
        server.run(name)
    finally:
        server.close()
