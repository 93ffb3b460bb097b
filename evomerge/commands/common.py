"""What the commands share: arguments, output, opening a search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import evomerge

if TYPE_CHECKING:
    from evomerge.results import Results

SearchName = Annotated[str, typer.Argument(metavar="SEARCH", help="name of a search, or its search file")]
SearchPath = Annotated[Path, typer.Argument(metavar="SEARCH.YAML", help="search file; `evomerge init` writes one")]
Storage = Annotated[str, typer.Option(help="database with the record, an SQLAlchemy URL")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
To = Annotated[str, typer.Option(help="folder or file to write, or a URL (s3://...); must not exist")]


@contextmanager
def progress_bar(label: str) -> Iterator[Any]:
    """Yield a callable (what, fraction) that draws a bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    shown = console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)


def print_all(*things: Any) -> None:
    """Print tables and text on standard output."""
    from evomerge.tables import printer

    console = printer()
    for thing in things:
        console.print(thing, markup=False, highlight=False)


def print_json(value: Any) -> None:
    """Print JSON on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def open_search(search: str, storage: str) -> Results:
    """Open a search by name, or by its search file (which names its storage too)."""
    if search.endswith((".yaml", ".yml")) and Path(search).exists():
        file = evomerge.load_file(search)
        return evomerge.load(file.name, storage=file.storage)
    return evomerge.load(search, storage=storage)


def compared(results: Results) -> list[Results]:
    """Return the searches that ran beside: a random one, and the first step of a hybrid one."""
    from evomerge.results import Results

    others = [results.record.store.find(f"{results.record.name}.{suffix}") for suffix in ("first", "random")]
    return [Results.of(other) for other in others if other]
