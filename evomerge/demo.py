"""`evomerge demo`: tiny experts, a real search, the result on held-out documents, a report, an exported model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import yaml
from rich.console import Console

from evomerge import tables
from evomerge.config import SearchFile, parse
from evomerge.export import export
from evomerge.foundry import Foundry, FoundrySettings, build
from evomerge.progress import display
from evomerge.report import write_report
from evomerge.results import Results
from evomerge.runner import run

NAME = "demo"


def run_demo(folder: Path, *, budget: int, seed: int) -> Results:
    """Do everything into ``folder``: experts (cached), search with a random search beside it, report, export."""
    console, log = tables.printer(), Console(stderr=True)
    folder.mkdir(parents=True, exist_ok=True)
    console.rule("tiny experts")
    with display(log) as watcher:
        foundry = build(FoundrySettings(seed=seed), cache=folder / "experts", progress=_in_words(watcher.say))
    console.print(f"base and {len(foundry.experts)} experts are in {foundry.root}", markup=False, soft_wrap=True)
    path = folder / "search.yaml"
    value = search_file(foundry, folder, budget=budget, seed=seed)
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    file = parse(value, folder=folder.resolve(), where=str(path))
    console.rule("search")
    results, random = search(file)
    show(console, results, random)
    report, merged = folder / "report.html", folder / "merged"
    write_report(results, report, others=[random])
    if results.winner is not None:
        shutil.rmtree(merged, ignore_errors=True)
        export(results, results.winner, merged, kind="checkpoint")
    _say_what_next(console, folder)
    return results


def search(file: SearchFile) -> tuple[Results, Results]:
    """Run ``file`` and its random search; return both."""
    with display(Console(stderr=True)) as watcher:
        results = run(file, watcher=watcher)
    return results, Results.of(results.record.store.search(f"{file.name}.random"))


def search_file(foundry: Foundry, folder: Path, *, budget: int, seed: int) -> dict[str, object]:
    """Return the mapping of the demo's search file: a weight per expert and layer, the joint skills as objectives."""
    return {
        "name": NAME,
        "sources": {
            "base": str(foundry.base),
            "experts": [str(path) for path in foundry.experts.values()],
            "dtype": "float32",
        },
        "space": {
            "kind": "parameter",
            "operator": "task_arithmetic",
            "layer_groups": 6,
            "weight": [0.0, 1.5],
        },
        "objectives": [{"task": task, "metric": "exact_match"} for task in foundry.objectives],
        "evaluation": {
            "search_documents": 64,
            "validation_documents": 256,
            "test_documents": 512,
            "include_path": [str(foundry.tasks)],
        },
        "optimizer": {"kind": "cma_es", "seed": seed},
        "baselines": {"single_coefficient": 20, "random_search": True},
        "budget": {"evaluations": budget, "finalists": 32},
        "storage": f"sqlite:///{folder.resolve() / 'evomerge.db'}",
    }


def show(console: Console, results: Results, random: Results) -> None:
    """Print the comparison on test documents."""
    rows = results.table([random])
    console.print(tables.comparison_table(rows, results.chooser.names))


def _in_words(say: Callable[[str], None]) -> Callable[[str, float], None]:
    """Pass on a stage's progress in words, a line for each tenth."""
    last: dict[str, int] = {}

    def progress(what: str, fraction: float) -> None:
        if last.get(what) != int(fraction * 10):
            last[what] = int(fraction * 10)
            say(f"{what}: {fraction:.0%}")

    return progress


def _say_what_next(console: Console, folder: Path) -> None:
    storage = f"--storage sqlite:///{folder / 'evomerge.db'}"
    console.print(
        f"\nreport:       {folder / 'report.html'} (open it in a browser)\n"
        f"merged model: {folder / 'merged'} (an ordinary checkpoint for transformers)\n"
        f"search file:  {folder / 'search.yaml'}\n\n"
        f"look closer:  evomerge front {NAME} {storage}\n"
        f"              evomerge show {NAME} best {storage}\n"
        f"your models:  evomerge init --base B --expert M1 --expert M2 --task T -o search.yaml",
        markup=False,
        soft_wrap=True,
    )
