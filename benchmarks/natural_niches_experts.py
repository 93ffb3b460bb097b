"""Natural niches on language models: mosaics of the foundry's experts, beside CMA-ES and MAP-Elites.

Question: at equal numbers of evaluations, how good is the model that natural niches find, and does it matter whether
SLERP keeps the length of the weights (the paper) or of the task vectors?

Set-up: the demo's four experts, tasks and splits (64 search documents of each of three joint skills). Natural niches
(archive 15, as in the paper's language models) and MAP-Elites (4 cells an objective, ditto) search mosaics with tiles
of 256 elements and the two chromosomes `attention` and the rest; CMA-ES searches the demo's own space, a weight per
expert and layer. All start from the same seed candidates. 300 evaluations each, seeds 10 to 14 of the search; the
experts stay the same. 8 finalists are validated, the winner's mean score on 512 test documents a skill is shown, with
the best single coefficient (a grid of 20, chosen on validation) beside it.

Run: `.venv/bin/python benchmarks/natural_niches_experts.py` (12 minutes of CPU). Writes
results/natural_niches_experts.json.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import experts, save

from evomerge import demo
from evomerge.config import parse
from evomerge.niches import niche_history
from evomerge.results import JOINT
from evomerge.runner import run

SEEDS = range(10, 15)
EVALUATIONS = 300
MOSAIC = {"kind": "mosaic", "tile": 256, "chromosomes": {"attention": ["self_attn"]}}
NICHES = {"kind": "natural_niches", "archive": 15}
VARIANTS: dict[str, dict[str, Any]] = {
    "natural niches, weights": {"space": MOSAIC, "optimizer": NICHES},
    "natural niches, task vectors": {"space": {**MOSAIC, "sphere": "task_vectors"}, "optimizer": NICHES},
    "natural niches, genes": {"optimizer": NICHES},
    "MAP-Elites, task vectors": {
        "space": {**MOSAIC, "sphere": "task_vectors"},
        "optimizer": {"kind": "map_elites", "cells": 4},
    },
    "CMA-ES, genes": {"optimizer": {"kind": "cma_es"}},
}


def search(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Run one search; return the winner's scores, and what the niches looked like at the end."""
    value: dict[str, Any] = demo.search_file(experts(0), folder, budget=EVALUATIONS, seed=seed)
    value |= VARIANTS[name]
    value["optimizer"] = {**value["optimizer"], "seed": seed}
    value["baselines"] = {"single_coefficient": 20 if seed == SEEDS[0] and name == next(iter(VARIANTS)) else 0}
    value["budget"] = {"evaluations": EVALUATIONS, "finalists": 8}
    value["cluster"] = {"backend": "in_process"}
    began = time.process_time()
    results = run(parse(value, folder=folder, where="benchmark"))
    rows = {row.label if row.role != "winner" else "winner": row.estimates[JOINT].value for row in results.table()}
    assert results.winner is not None
    best = max(results.chooser.number(candidate, "search") for candidate in results.candidates)
    last = niche_history(results)[-1]
    return {
        "test": rows["winner"],
        "search": best,
        "coverage": last.coverage,
        "entropy": last.entropy,
        "origin": results.winner.name or results.winner.origin,
        "references": {label: score for label, score in rows.items() if label != "winner"},
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main() -> None:
    """Run all variants seed by seed; print the table and write the results after every seed."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for seed in SEEDS:
        for name, runs in found.items():
            with tempfile.TemporaryDirectory() as folder:
                runs.append(search(name, seed, Path(folder)))
            print(seed, name, {key: value for key, value in runs[-1].items() if key != "references"}, flush=True)
        save("natural_niches_experts", {"evaluations": EVALUATIONS, "variants": found, "table": table(found)})
    print("\n".join(table(found)))


def table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the Markdown table: mean and standard deviation over seeds."""
    lines = ["| search | test score | best search score | coverage | entropy |", "|---|---|---|---|---|"]
    for name, runs in found.items():
        columns = {key: np.array([run[key] for run in runs]) for key in ("test", "search", "coverage", "entropy")}
        spread = columns["test"].std(ddof=1) if len(runs) > 1 else float("nan")
        lines.append(
            f"| {name} | {columns['test'].mean():.3f} ± {spread:.3f} | {columns['search'].mean():.3f} | "
            f"{columns['coverage'].mean():.2f} | {columns['entropy'].mean():.2f} |"
        )
    for label, score in found[next(iter(found))][0]["references"].items():
        lines.append(f"| {label} | {score:.3f} | - | - | - |")
    return lines


if __name__ == "__main__":
    main()
