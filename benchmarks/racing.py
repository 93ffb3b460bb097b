"""What racing saves: the demo's search with and without it, at equal numbers of evaluations, over seeds.

Question: how many times fewer documents does a search evaluate when candidates without a chance leave early, is the
winner as good on test documents, and is it better than one found by simply searching on fewer documents? Each seed
searches three times on the same experts: without racing, with racing, and without racing on as many times fewer search
documents as racing had needed. Validation and test documents are the same in all, and measured in full. Documents are
counted, not timed, so a busy machine does no harm.

Run: `.venv/bin/python benchmarks/racing.py [--experts FOLDER]` (about a minute a seed on one idle core). Writes
results/racing.json after every seed.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import experts, save

from evaluators.evaluation import Floats
from evaluators.statistics import mean_interval
from evomerge import demo
from evomerge.config import parse
from evomerge.foundry import Foundry
from evomerge.results import JOINT
from evomerge.runner import run

SEEDS = range(10, 20)
EVALUATIONS = 300
DOCUMENTS = 64  # of each task, for the search
FINALISTS = 12
ARMS = ("without", "with", "fewer")


def search(foundry: Foundry, seed: int, *, racing: bool, evaluations: int, documents: int) -> dict[str, Any]:
    """Run one search; return what it saw and what it found."""
    with tempfile.TemporaryDirectory() as folder:
        value: dict[str, Any] = demo.search_file(foundry, Path(folder), budget=evaluations, seed=seed)
        # ranges keep validation and test the same whatever the search takes
        ranges = {"validation_documents": "0:256", "test_documents": "256:640"}
        value["evaluation"].update({"search_documents": documents, "racing": racing, **ranges})
        value["budget"]["finalists"] = FINALISTS
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
    """Return for each arm how many times fewer documents it took than the first, and the paired difference of test
    scores with its 95 % interval."""

    def of(arm: str, key: str) -> Floats:
        return np.array([row[arm][key] for row in rows])

    found = {}
    for arm in ARMS:
        difference = of(arm, "test") - of("without", "test")
        found[arm] = {
            "times_fewer_documents": float(of("without", "documents").sum() / of(arm, "documents").sum()),
            "times_less_cpu_in_search": float(of("without", "cpu_seconds").sum() / of(arm, "cpu_seconds").sum()),
            "test": float(of(arm, "test").mean()),
            "difference": float(difference.mean()),
            "interval": mean_interval(difference) if len(rows) > 1 and arm != "without" else None,
        }
    return found


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
        once = partial(search, foundry, seed, evaluations=options.evaluations)
        row: dict[str, Any] = {"seed": seed, "without": once(racing=False, documents=DOCUMENTS)}
        row["with"] = once(racing=True, documents=DOCUMENTS)
        ratio = row["without"]["documents"] / row["with"]["documents"]
        row["fewer"] = once(racing=False, documents=round(DOCUMENTS / ratio))
        rows.append(row)
        tests = ", ".join(f"{arm} {row[arm]['test']:.3f}" for arm in ARMS)
        print(f"seed {seed}: {ratio:.2f} times fewer; test {tests}", flush=True)
        save(options.name, {"evaluations": options.evaluations, **summary(rows), "seeds": rows})
    print(summary(rows))


if __name__ == "__main__":
    main()
