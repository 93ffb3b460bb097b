"""What fewer documents cost: the demo's search in full, on minibatches, racing, and on fewer documents, over seeds.

Question: how many times fewer documents does a search evaluate with `evaluation.minibatches`, by probabilities and by
the metric itself, or when candidates without a chance leave early (`evaluation.racing`), is the winner as good on test
documents, and is any of them better than simply taking a third of the search documents? Each seed searches once per arm
on the same experts and on search documents that it draws, at equal numbers of evaluations; arms `eight` and `sixteen`
take as many evaluations as a third of the documents allows. Documents are counted over all evaluations on search
documents; validation and test documents are the same in all arms, and measured in full. Documents are counted, not
timed, so a busy machine does no harm.

Run: `.venv/bin/python benchmarks/racing.py [--experts FOLDER] [--arms without token] [--evaluations N]` (two to
three minutes a seed on one idle core with 300 evaluations and all arms). Writes results/racing.json after every search,
and goes on from there when it is run again with the same experts; with others it begins anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, experts, name_of, save

from evaluators.evaluation import Floats
from evaluators.statistics import mean_interval
from evomerge import demo
from evomerge.config import parse
from evomerge.foundry import Foundry
from evomerge.results import JOINT
from evomerge.runner import run

SEEDS = range(10, 40)
EVALUATIONS = 300
DOCUMENTS = 64  # of each task, for the search
FINALISTS = 12
MINIBATCHES = 4
ARMS: dict[str, dict[str, Any]] = {
    "without": {},
    "token": {"minibatches": {"count": MINIBATCHES, "measure": "probability_per_token"}},
    "answer": {"minibatches": {"count": MINIBATCHES, "measure": "probability"}},
    "metric": {"minibatches": MINIBATCHES},
    "racing": {"racing": True},
    "fewer": {"search_documents": round(DOCUMENTS / 3.2)},
    "eight": {"minibatches": {"count": 8, "measure": "probability_per_token"}},
    "sixteen": {"minibatches": {"count": 16, "measure": "probability_per_token"}},
}
BY_DOCUMENTS = ("eight", "sixteen")  # arms with as many evaluations as a third of the documents allow


def search(foundry: Foundry, seed: int, arm: str, *, evaluations: int) -> dict[str, Any]:
    """Run one search with the settings of ``arm``; return what it saw and what it found."""
    with tempfile.TemporaryDirectory() as folder:
        value: dict[str, Any] = demo.search_file(foundry, Path(folder), budget=evaluations, seed=seed)
        # ranges keep validation and test the same whatever the search takes, which is drawn anew for each seed
        ranges = {"validation_documents": "0:256", "test_documents": "384:1536", "split_seed": seed}
        value["evaluation"].update({"search_documents": DOCUMENTS, **ranges, **ARMS[arm]})
        value["budget"]["finalists"] = FINALISTS
        if arm in BY_DOCUMENTS:
            all_of_one = len(value["objectives"]) * DOCUMENTS
            # less one candidate: the last may exceed the budget
            value["budget"].update({"evaluations": 10_000, "documents": (evaluations // 3 - 1) * all_of_one})
        value["baselines"] = {"single_coefficient": 0, "random_search": False}
        value["cluster"] = {"backend": "in_process", "workers": 1}
        results = run(parse(value, folder=Path(folder), where="benchmark"))
        assert results.winner is not None
        cost = results.costs["search"]
        numbers = [results.chooser.number(c, "search") for c in results.candidates]
        return {
            "documents": cost.documents,
            "cpu_seconds": round(cost.cpu_seconds, 1),
            "evaluations": results.spent,
            "estimated": results.stopped,
            "finalists": sum("validation" in c.evaluations for c in results.candidates),
            "search": max(numbers),
            "validation": results.chooser.number(results.winner, "validation"),
            "test": results.estimate(results.winner, "test")[JOINT].value,
        }


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return for each arm, over the seeds that it has in common with the first, how many times fewer documents it took
    than the first, and the paired difference of test scores with its 95 % interval."""
    found = {}
    for arm in ARMS:
        seeds = [seed for seed in rows if arm in rows[seed] and "without" in rows[seed]]
        if not seeds:
            continue

        def of(name: str, key: str, seeds: list[str] = seeds) -> Floats:
            return np.array([rows[seed][name][key] for seed in seeds])

        difference = of(arm, "test") - of("without", "test")
        found[arm] = {
            "searches": len(seeds),
            "times_fewer_documents": float(of("without", "documents").sum() / of(arm, "documents").sum()),
            "test": float(of(arm, "test").mean()),
            "difference": float(difference.mean()),
            "interval": mean_interval(difference) if len(seeds) > 1 and arm != "without" else None,
        }
    return found


def main() -> None:
    """Run all searches that are not there yet, printing each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--experts", type=Path, help="cache of the foundry; trained anew without")
    parser.add_argument("--name", default="racing", help="of the file with the result")
    options = parser.parse_args()
    foundry = experts(cache=options.experts) if options.experts else experts()
    known = {"experts": name_of(foundry), "evaluations": options.evaluations}
    rows = load(options.name, known)
    for seed in options.seeds:
        row = rows.setdefault(str(seed), {})
        for arm in options.arms:
            if arm in row:
                continue
            row[arm] = search(foundry, seed, arm, evaluations=options.evaluations)
            print(f"seed {seed}, {arm}: {row[arm]['documents']} documents, test {row[arm]['test']:.3f}", flush=True)
            save(options.name, {**known, "arms": summary(rows), "seeds": rows})
    for arm, found in summary(rows).items():
        print(arm, found)


def load(name: str, known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what results/NAME.json holds of searches of the same experts and length, by seed and arm."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found["seeds"] if found.items() >= known.items() else {}


if __name__ == "__main__":
    main()
