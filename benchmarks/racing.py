"""What racing saves: the demo's search with and without it, at equal numbers of evaluations, over seeds.

Question: how many times fewer documents does a search evaluate when candidates without a chance leave early, and is
the winner as good on test documents? Each seed searches twice on the same experts, first without and then with racing;
validation and test are measured in full in both. Documents are counted, not timed, so a busy machine does no harm.

Run: `.venv/bin/python benchmarks/racing.py [--experts FOLDER]` (about three minutes a seed on one idle core). Writes
results/racing.json after every seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import experts, save

from evaluators.statistics import mean_interval
from evomerge import demo
from evomerge.config import parse
from evomerge.foundry import Foundry
from evomerge.results import JOINT
from evomerge.runner import run

SEEDS = range(10, 20)
EVALUATIONS = 400


def search(foundry: Foundry, seed: int, *, racing: bool, evaluations: int) -> dict[str, Any]:
    """Run one search; return what it saw and what it found."""
    with tempfile.TemporaryDirectory() as folder:
        value: dict[str, Any] = demo.search_file(foundry, Path(folder), budget=evaluations, seed=seed)
        value["evaluation"]["racing"] = racing
        value["baselines"] = {"single_coefficient": 0, "random_search": False}
        value["cluster"] = {"backend": "in_process", "workers": 1}
        results = run(parse(value, folder=Path(folder), where="benchmark"))
        assert results.winner is not None
        cost = results.costs["search"]
        numbers = [results.chooser.number(c, "search") for c in results.candidates]
        return {
            "documents": cost.documents,
            "cpu_seconds": round(cost.cpu_seconds, 1),
            "stopped": results.stopped,
            "finalists": sum("validation" in c.evaluations for c in results.candidates),
            "search": max(numbers),
            "validation": results.chooser.number(results.winner, "validation"),
            "test": results.estimate(results.winner, "test")[JOINT].value,
        }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the ratio of documents and the paired difference of test scores with its 95 % interval."""
    documents = np.array([[row["without"]["documents"], row["with"]["documents"]] for row in rows])
    tests = np.array([[row["without"]["test"], row["with"]["test"]] for row in rows])
    cpu = np.array([[row["without"]["cpu_seconds"], row["with"]["cpu_seconds"]] for row in rows])
    difference = tests[:, 1] - tests[:, 0]
    interval = mean_interval(difference) if len(rows) > 1 else None
    return {
        "times_fewer_documents": float(documents[:, 0].sum() / documents[:, 1].sum()),
        "times_less_cpu_in_search": float(cpu[:, 0].sum() / cpu[:, 1].sum()),
        "test_without": float(tests[:, 0].mean()),
        "test_with": float(tests[:, 1].mean()),
        "difference": float(difference.mean()),
        "interval": interval,
    }


def main() -> None:
    """Run all seeds, printing each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--experts", type=Path, help="cache of the foundry; trained anew without")
    parser.add_argument("--name", default="racing", help="of the file with the result")
    options = parser.parse_args()
    foundry = experts(cache=options.experts) if options.experts else experts()
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        row: dict[str, Any] = {"seed": seed}
        for key, racing in (("without", False), ("with", True)):
            row[key] = search(foundry, seed, racing=racing, evaluations=options.evaluations)
        rows.append(row)
        ratio = row["without"]["documents"] / row["with"]["documents"]
        print(f"seed {seed}: {ratio:.2f} times fewer; test {row['without']['test']:.3f} -> {row['with']['test']:.3f}")
        save(options.name, {"evaluations": options.evaluations, **summary(rows), "seeds": rows})
    print(summary(rows))


if __name__ == "__main__":
    main()
