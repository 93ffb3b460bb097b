"""Commands that prepare and run searches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import evomerge
from evomerge.commands.common import AsJson, SearchPath, compared, print_all, print_json, progress_bar

if TYPE_CHECKING:
    from evomerge.results import Results


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="everything is written here")] = Path("demo"),
    budget: Annotated[int, typer.Option(help="evaluations of the search", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="of experts and search", min=0)] = 0,
) -> None:
    """Train tiny experts (cached), search, print the result, write the report, export the winner."""
    from evomerge.demo import run_demo

    run_demo(folder, budget=budget, seed=seed)


def init(
    base: Annotated[str | None, typer.Option(help="base model: a folder or a Hub id")] = None,
    expert: Annotated[list[str] | None, typer.Option(help="fine-tuned model (repeat)")] = None,
    task: Annotated[list[str] | None, typer.Option(help="lm-eval task, or task/metric (repeat)")] = None,
    include_path: Annotated[list[str] | None, typer.Option(help="folder with task files of your own (repeat)")] = None,
    from_mergekit_evolve: Annotated[Path | None, typer.Option(help="convert this configuration")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="search file to write")] = Path("search.yaml"),
) -> None:
    """Write a search file."""
    from evomerge import scaffold
    from evomerge.atomic import write_new

    if from_mergekit_evolve is not None:
        text = scaffold.from_mergekit_evolve(from_mergekit_evolve)
    else:
        text = scaffold.search_file(
            base=base, experts=expert or [], tasks=task or [], include_path=include_path or [], name=output.stem
        )
    write_new(output, text)
    typer.echo(f"wrote {output}; next: evomerge check {output}")


def check(search_file: SearchPath, as_json: AsJson = False) -> None:
    """Do every check that `run` does before it starts, and estimate memory and time."""
    from evomerge import tables
    from evomerge.estimate import estimate

    with progress_bar("checking") as progress:
        found = estimate(evomerge.load_file(search_file), say=lambda what: progress(what, 0.0), progress=progress)
    if as_json:
        print_json(found.to_json())
    else:
        typer.echo("\n".join(found.lines()))
        print_all(tables.inspection_table(found.inspection))
        for warning in found.warnings:
            typer.echo(f"warning: {warning}", err=True)


def run(search_file: SearchPath) -> None:
    """Run a search here, or continue it: on this machine, or on the Ray cluster that RAY_ADDRESS names."""
    results = _run(evomerge.load_file(search_file))
    _print_results(results)
    name = results.record.name
    typer.echo(f"\nnext: evomerge report {name} -o {name}.html    evomerge export {name} --best --to {name}-merged")


def _run(file: Any) -> Results:
    from rich.console import Console

    from evomerge.progress import display

    with display(Console(stderr=True)) as watcher:
        return evomerge.run(file, watcher=watcher)


def _print_results(results: Results) -> None:
    from evomerge import tables

    rows = results.table(compared(results))
    if rows:
        print_all(tables.comparison_table(rows, results.chooser.names))
    else:
        typer.echo("no winner: no candidate could be measured on validation documents")
