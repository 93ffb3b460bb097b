"""The command line. Exit status: 0 done, 2 the user's mistake (one line), 1 ours, 130 interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import evomerge
from evomerge.shares import shares

if TYPE_CHECKING:
    from evomerge.results import Results

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Finds the best way to merge a set of fine-tuned language models.",
)

INTERRUPTED = 130  # what shells report for SIGINT
SearchName = Annotated[str, typer.Argument(metavar="SEARCH", help="name of a search, or its search file")]
SearchPath = Annotated[Path, typer.Argument(metavar="SEARCH.YAML", help="search file; `evomerge init` writes one")]
Storage = Annotated[str, typer.Option(help="database with the record, an SQLAlchemy URL")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
To = Annotated[Path, typer.Option(help="folder or file to write; must not exist")]


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
    from cluster.pool import WorkersFailed

    if isinstance(error, WorkersFailed):
        return str(error)  # with the worker's own traceback
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(str(message).split())


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


@contextmanager
def _progress(label: str) -> Iterator[Any]:
    """Yield a callable (what, fraction) that draws a bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    shown = console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)


def _print(*things: Any) -> None:
    from evomerge.tables import printer

    console = printer()
    for thing in things:
        console.print(thing, markup=False, highlight=False)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _results(search: str, storage: str) -> Results:
    """Open a search by name, or by its search file (which names its storage too)."""
    if search.endswith((".yaml", ".yml")) and Path(search).exists():
        file = evomerge.load_file(search)
        return evomerge.load(file.name, storage=file.storage)
    return evomerge.load(search, storage=storage)


def _others(results: Results) -> list[Results]:
    """The random search that ran beside, if there is one."""
    from evomerge.results import Results

    other = results.record.store.find(f"{results.record.name}.random")
    return [Results.of(other)] if other else []


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="everything is written here")] = Path("demo"),
    budget: Annotated[int, typer.Option(help="evaluations of the search", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="of experts and search", min=0)] = 0,
) -> None:
    """Train tiny experts (cached), search, print the result, write the report, export the winner."""
    from evomerge.demo import run_demo

    run_demo(folder, budget=budget, seed=seed)


@app.command()
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

    if from_mergekit_evolve is not None:
        text = scaffold.from_mergekit_evolve(from_mergekit_evolve)
    else:
        text = scaffold.search_file(
            base=base, experts=expert or [], tasks=task or [], include_path=include_path or [], name=output.stem
        )
    scaffold.write_new(output, text)
    typer.echo(f"wrote {output}; next: evomerge check {output}")


@app.command()
def check(search_file: SearchPath, as_json: AsJson = False) -> None:
    """Do every check that `run` does before it starts, and estimate memory and time."""
    from evomerge import tables
    from evomerge.estimate import estimate

    with _progress("checking") as progress:
        found = estimate(evomerge.load_file(search_file), say=lambda what: progress(what, 0.0), progress=progress)
    if as_json:
        _print_json(found.to_json())
    else:
        typer.echo("\n".join(found.lines()))
        _print(tables.inspection_table(found.inspection))
        for warning in found.inspection.warnings:
            typer.echo(f"warning: {warning}", err=True)


@app.command()
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

    rows = results.table(_others(results))
    if rows:
        _print(tables.comparison_table(rows, results.chooser.names))
    else:
        typer.echo("no winner: no candidate could be measured on validation documents")


@app.command()
def status(search: SearchName, storage: Storage = evomerge.DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Say where a search stands."""
    from evomerge import tables

    results = _results(search, storage)
    if as_json:
        _print_json(tables.status_json(results))
    else:
        typer.echo("\n".join(tables.status_lines(results)))


@app.command()
def front(
    search: SearchName,
    predicted: Annotated[bool, typer.Option("--predicted", help="what a map search predicts; not evaluated")] = False,
    portfolio: Annotated[bool, typer.Option("--portfolio", help="the best of every behaviour, as cycle_qd")] = False,
    storage: Storage = evomerge.DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Print the Pareto front, and the comparison on test documents once it is there."""
    from evomerge import tables

    results = _results(search, storage)
    if predicted:
        _print_predicted(results, as_json)
        return
    members = results.portfolio if portfolio else results.front
    if as_json:
        _print_json([tables.candidate_json(results, candidate) for candidate in members])
        return
    _print(tables.front_table(results, members, "Portfolio" if portfolio else "Pareto front"))
    if rows := results.table(_others(results)):
        _print(tables.comparison_table(rows, results.chooser.names))


def _print_predicted(results: Results, as_json: bool) -> None:
    from evomerge.predicted import predict

    found = predict(results)
    if as_json:
        _print_json(found.to_json())
    else:
        _print(found.table(results.record.name))


@app.command()
def show(
    search: SearchName,
    candidate: Annotated[str, typer.Argument(help="number of a candidate, or best")],
    storage: Storage = evomerge.DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Print one candidate: scores, genome, recipe."""
    from evomerge import tables

    results = _results(search, storage)
    found = results.pick(candidate)
    if as_json:
        _print_json({**tables.candidate_json(results, found), "recipe": json.loads(found.recipe_json)})
        return
    _print(tables.candidate_table(results, found))
    if found.genome is not None:
        _print(tables.gene_table(results, found))
    typer.echo(f"export: evomerge export {results.record.name} --candidate {found.number} --to FOLDER")


@app.command()
def report(
    search: SearchName,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write")] = Path("report.html"),
    storage: Storage = evomerge.DEFAULT_STORAGE,
) -> None:
    """Write one self-contained HTML file: front, progress, the winner's recipe, test scores."""
    from evomerge.report import write_report

    results = _results(search, storage)
    write_report(results, output, others=_others(results))
    typer.echo(f"wrote {output}")


@app.command()
def export(
    search: SearchName,
    to: To,
    candidate: Annotated[int | None, typer.Option(help="number of the candidate")] = None,
    best: Annotated[bool, typer.Option("--best", help="the winner (the default)")] = False,
    prefer: Annotated[
        str | None, typer.Option(help="choose from the front: task=weight,... or task>=least,... or chebyshev")
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="checkpoint, mergekit or recipe")] = "checkpoint",
    storage: Storage = evomerge.DEFAULT_STORAGE,
) -> None:
    """Write a candidate as a checkpoint, a mergekit config or a recipe."""
    from evomerge import export as exporting

    results = _results(search, storage)
    chosen = exporting.choose(results, candidate=candidate, best=best, prefer=prefer)
    with _progress("exporting") as progress:
        exporting.export(results, chosen, to, kind=kind, progress=shares(progress, "exporting"))
    typer.echo(f"wrote {chosen.label} to {to}")


@app.command()
def merge(
    file: Annotated[Path, typer.Argument(help="recipe (JSON) or mergekit config (YAML)")],
    to: To,
) -> None:
    """Materialise a recipe or a mergekit config as a checkpoint."""
    from evomerge import export as exporting

    with _progress("merging") as progress:
        exporting.merge_file(file, to, progress=shares(progress, "merging"))
    typer.echo(f"wrote {to}")


@app.command()
def evaluate(
    model_or_recipe: Annotated[
        str | None,
        typer.Argument(metavar="MODEL_OR_RECIPE", help="folder, Hub id, recipe (JSON) or mergekit config (YAML)"),
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="lm-eval task, or task/metric (repeat)")] = None,
    objectives: Annotated[Path | None, typer.Option(help="YAML file with a list `objectives`, of any kind")] = None,
    base: Annotated[str | None, typer.Option(help="base of objectives that are relative to one")] = None,
    endpoint: Annotated[str | None, typer.Option(help="address ending in /completions or /chat/completions")] = None,
    model: Annotated[str | None, typer.Option(help="name of the endpoint's model")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="of the endpoint's model: folder or Hub id")] = None,
    include_path: Annotated[list[str] | None, typer.Option(help="folder with task files of your own (repeat)")] = None,
    trusted_path: Annotated[list[str] | None, typer.Option(help="task folder whose Python may run (repeat)")] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="run code that the model writes, under limits")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="documents per task, the first ones", min=1)] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0)] = None,
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the model's own by default")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure any model, or one behind an OpenAI-compatible API, with the evaluator that searches use."""
    from evaluators.objective import EvaluationSettings
    from evomerge import measure
    from evomerge.config import absolute_folders

    if (model_or_recipe is None) == (endpoint is None) or (endpoint is None) != (model is None):
        raise typer.BadParameter("name a model or recipe, or else both --endpoint and --model")
    settings = EvaluationSettings(
        include_path=absolute_folders(include_path or [], Path.cwd()),
        trusted_paths=absolute_folders(trusted_path or [], Path.cwd()),
        allow_code_execution=allow_code_execution,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
    )
    asked = measure.read_objectives(tasks or [], objectives, settings)
    if endpoint is not None and model is not None:
        from evaluators.endpoint import EndpointSettings

        called = EndpointSettings(endpoint, model, tokenizer)
        estimates = measure.measure_endpoint(called, objectives=asked, settings=settings, limit=limit)
    else:
        assert model_or_recipe is not None
        estimates = measure.measure(
            model_or_recipe,
            objectives=asked,
            settings=settings,
            limit=limit,
            dtype=dtype,
            base=base,
            say=partial(typer.echo, err=True),
        )
    if as_json:
        _print_json({name: {"value": e.value, "low": e.low, "high": e.high} for name, e in estimates.items()})
        return
    from evomerge.tables import interval

    for name, value in estimates.items():
        typer.echo(f"{name}  {interval(value)}")


if __name__ == "__main__":
    main()
