"""What statistics from calibration prompts are worth: single merges of the foundry's experts, without a search.

Question: do Fisher, RegMean, RegMean++ and RCP merge better than task arithmetic with the same coefficient for every
expert? Prompts are 32 search documents of each task; either every expert is run on those of all three objectives, or
each on those of its own task. Joint score on 1,536 test documents; nothing is chosen.

Run: `.venv/bin/python benchmarks/calibration.py` (about six minutes on two idle cores once the experts are trained).
Continues where it was stopped. Writes results/calibration.json and prints the table of docs/operators.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import CACHE, RESULTS, experts, save

from evaluators.evaluation import Evaluation
from evomerge import demo
from evomerge.config import parse
from evomerge.problem import Problem, prepare
from search_spaces.genes import Genome
from search_spaces.parameter_space import ParameterSpace

SEEDS = (0, 1, 2)
COEFFICIENTS = (0.25, 0.5, 0.75, 1.0)
OWN = {
    "expert-add": ["add_e"],
    "expert-sort": ["sort_e"],
    "expert-reverse": ["rev_e"],
    "expert-language": ["general_j"],
}
MERGES: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"operator": "task_arithmetic"},
    "fisher": {"operator": "fisher"},
    "fisher, exponent 0.5": {"operator": "fisher", "exponent": 0.5},
    "regmean 0.9": {"operator": "regmean", "off_diagonal": 0.9},
    "regmean 0.5": {"operator": "regmean", "off_diagonal": 0.5},
    "regmean_plus 0.9": {"operator": "regmean_plus", "off_diagonal": 0.9},
    "regmean_plus 0.5": {"operator": "regmean_plus", "off_diagonal": 0.5},
    "rcp": {"operator": "rcp"},
}


def problem_of(seed: int, merge: str, prompts: str, folder: Path) -> Problem:
    """Return the search of one operator on the foundry's experts, with its statistics computed."""
    value: dict[str, Any] = demo.search_file(experts(seed), folder, budget=1, seed=seed)
    value["space"] = MERGES[merge]
    if prompts != "none":
        value["calibration"] = {"documents": 32, "tasks": OWN if prompts == "own" else {}}
    if merge == "rcp":  # the first expert is the one whose ability is kept
        value["sources"]["experts"] = value["sources"]["experts"][::-1]
    return prepare(parse(value, folder=folder, where="benchmark"))


def scores(problem: Problem) -> list[float]:
    """Return the joint score on test documents for every coefficient."""
    space, worker = problem.space, problem.worker_spec(device="cpu", threads=1)()
    assert isinstance(space, ParameterSpace)
    found = []
    for coefficient in COEFFICIENTS:
        recipe = space.decode(Genome(np.full(len(space.genes), coefficient)))
        outcome = worker.evaluate(recipe.to_json(), problem.documents("test").ids, as_exported=True)
        assert isinstance(outcome, Evaluation), outcome
        found.append(float(np.mean([score.value for score in outcome.scores.values()])))
    return found


def main() -> None:
    """Measure what is not in the results yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    asked = parser.parse_args()
    path = RESULTS / "calibration.json"
    found: dict[str, list[float]] = json.loads(path.read_text())["scores"] if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("EVOMERGE_CACHE", str(CACHE.parent / "calibration"))
        for seed in asked.seeds:
            for merge in MERGES:
                for prompts in ("none",) if merge == "task_arithmetic" else ("all", "own"):
                    key = f"{merge} | {prompts} | {seed}"
                    if key not in found:
                        found[key] = scores(problem_of(seed, merge, prompts, Path(folder)))
                        print(key, [round(score, 3) for score in found[key]], flush=True)
                        save("calibration", {"coefficients": COEFFICIENTS, "scores": found})
    print("| operator | prompts | " + " | ".join(f"{c:g}" for c in COEFFICIENTS) + " |")
    print("|---|---|" + "---|" * len(COEFFICIENTS))
    for name in dict.fromkeys(key.rpartition(" | ")[0] for key in found):
        rows = np.array([found[f"{name} | {seed}"] for seed in asked.seeds])
        print(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in rows.mean(0)) + " |")


if __name__ == "__main__":
    main()
