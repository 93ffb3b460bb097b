"""What one candidate costs: evomerge's whole system beside the path of mergekit-evolve, in the same run.

Question: how many CPU seconds does a candidate take, and how many of them outside the model's forward passes?

Set-up: the demo's experts, search space, tasks and search documents. evomerge runs its real search (driver, record,
Ray workers); the CPU time of all its processes is read after the first 50 candidates and at the end: once with one
worker, which is compared with the peer, and once with two, as the demo runs (cores that share their units make each
other's CPU seconds longer). The peer runs in one warm process of its own environment: mergekit 0.1.5 `run_merge` to
disk, then `lm_eval.simple_evaluate` with the hf backend, batch 64, one TaskManager without the default tasks,
bootstrap off; the same sources, recipes and documents. Two warm-up candidates are not counted. Scores of both are
compared as well.

Run: `make mergekit-env`, then `.venv/bin/python benchmarks/candidate_cost.py`. Writes results/candidate_cost.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import experts, save
from mergekit_path import measure_by_mergekit, search_tasks

from evomerge import demo
from evomerge.config import parse
from evomerge.records import CandidateRecord, Split
from evomerge.results import Results
from evomerge.runner import run
from evomerge.watcher import Silent

EVALUATIONS, WARM_UP, PEER_CANDIDATES = 300, 50, 10


def tree_seconds() -> float:
    """CPU seconds of this process and everything below it."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
            total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


class Meter(Silent):
    """Reads the clock of all processes after the warm-up and after the last search evaluation."""

    def __init__(self) -> None:
        self.count = 0
        self.readings: dict[int, float] = {}

    def evaluated(self, candidate: CandidateRecord, split: Split) -> None:
        """Count it; read the clock at both ends."""
        if split == "search":
            self.count += 1
            if self.count in (WARM_UP, EVALUATIONS):
                self.readings[self.count] = tree_seconds()


def ours(folder: Path, workers: int) -> tuple[dict[str, float], Results]:
    """Run the demo's search with ``workers``; return CPU seconds per candidate and its results."""
    folder.mkdir()
    foundry = experts()
    value: dict[str, Any] = demo.search_file(foundry, folder, budget=EVALUATIONS, seed=0)
    value["cluster"] = {"workers": workers}
    value["baselines"] = {"single_coefficient": 0, "random_search": False}
    meter = Meter()
    results = run(parse(value, folder=folder, where="benchmark"), watcher=meter)
    counted = EVALUATIONS - WARM_UP
    whole = (meter.readings[EVALUATIONS] - meter.readings[WARM_UP]) / counted
    costs = [c.evaluations["search"].cost for c in results.candidates if c.state == "measured"][WARM_UP:]
    forward = float(np.mean([cost.forward_cpu_seconds for cost in costs if cost.documents]))
    return {"cpu_seconds": whole, "forward_cpu_seconds": forward, "other_cpu_seconds": whole - forward}, results


def peer(results: Results, folder: Path) -> dict[str, Any]:
    """Measure the peer on the same recipes and documents."""
    candidates = [c for c in results.candidates if c.origin == "optimizer"][: PEER_CANDIDATES + 2]
    source, documents = Path(results.file.evaluation.include_path[0]), results.record.row.plan["documents"]["search"]
    found = measure_by_mergekit(
        [candidate.recipe for candidate in candidates],
        tasks=search_tasks(source, documents, folder / "search-tasks"),
        names=[objective.task for objective in results.objectives],
        folder=folder,
    )
    ours_scores = [[c.evaluations["search"].scores[o.name].value for o in results.objectives] for c in candidates]
    peer_scores = [[scores[o.task] for o in results.objectives] for scores in found.pop("scores")]
    found["largest_score_difference"] = float(np.abs(np.array(ours_scores) - np.array(peer_scores)).max())
    return found


def main() -> None:
    """Measure both and print the ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cost, results = ours(folder / "one", workers=1)
        other = peer(results, folder)
        cost_of_two, _ = ours(folder / "two", workers=2)
    ratio = other["cpu_seconds"] / cost["cpu_seconds"]
    print("| CPU ms a candidate | all | model forward passes | everything else |")
    print("|---|---|---|---|")
    for name, row in (("evomerge, one worker", cost), ("evomerge, two workers", cost_of_two)):
        print(f"| {name} | " + " | ".join(f"{seconds * 1e3:.1f}" for seconds in row.values()) + " |")
    print(f"| mergekit + lm-eval | {other['cpu_seconds'] * 1e3:.0f} | | |")
    print(f"ratio (one worker) {ratio:.1f}; largest difference of a score {other['largest_score_difference']:.4f}")
    found = {"one_worker": cost, "two_workers": cost_of_two, "mergekit_path": other, "ratio": ratio}
    save("candidate_cost", found)


if __name__ == "__main__":
    main()
