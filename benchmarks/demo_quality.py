"""What the demo finds, over seeds: the winner beside everything that it must beat, on held-out documents.

Question: is the found recipe better than base, experts, uniform average, the best single coefficient (a grid of 20,
chosen on validation) and random search with the same number of evaluations? Each seed trains its own experts and
searches with its own seed; the table shows every seed, and nothing is chosen by test documents.

Run: `.venv/bin/python benchmarks/demo_quality.py` (two to ten minutes a seed on two cores). Writes
results/demo_quality.json and prints the table that the README shows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import experts, save
from rich.console import Console

from evomerge import demo
from evomerge.config import parse
from evomerge.progress import PlainLog
from evomerge.results import JOINT, Results
from evomerge.runner import run

SEEDS = (0, 1, 2)
EVALUATIONS = 1000


def search(seed: int, folder: Path) -> dict[str, dict[str, list[float | None]]]:
    """Run the demo of ``seed``; return [value, low, high] per model and objective."""
    value: dict[str, Any] = demo.search_file(experts(seed), folder, budget=EVALUATIONS, seed=seed)
    results = run(parse(value, folder=folder, where="benchmark"), watcher=PlainLog(Console(stderr=True)))
    random = Results.of(results.record.store.search(f"{demo.NAME}.random"))
    return {
        row.label.partition(" (")[0] if row.role == "winner" else label(row): {
            name: [estimate.value, estimate.low, estimate.high] for name, estimate in row.estimates.items()
        }
        for row in results.table([random])
    }


def label(row: Any) -> str:
    """One name per role, so that seeds can be put side by side."""
    return {"single coefficient": "best single coefficient", "random": "random search"}.get(row.role, row.label)


def cell(estimate: list[float | None]) -> str:
    """``0.912 [0.898, 0.926]``."""
    value, low, high = estimate
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Run all seeds and print the joint score as a Markdown table."""
    found = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            found[seed] = search(seed, Path(folder))
    print("| model | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " |")
    print("|---|" + "---|" * len(SEEDS))
    for model in found[SEEDS[0]]:
        print(f"| {model} | " + " | ".join(cell(found[seed][model][JOINT]) for seed in SEEDS) + " |")
    save("demo_quality", {"evaluations": EVALUATIONS, "seeds": {str(seed): table for seed, table in found.items()}})


if __name__ == "__main__":
    main()
