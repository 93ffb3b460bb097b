"""Experts for which depth matters: what paths find that no merge holds, and what scales are worth there.

Set-up: the experts of step_experts.py, each of which knows one of two steps. Tasks ask for both, one after the other:
`both` wants the four digits, `both_mc` offers four answers, of which three are nearly right, so that half a solution
counts. Every space is searched with equal evaluations, over seeds, for the mean of the two. Reported: the winner's test
scores, and the best search score among what the optimizer proposed. Scales: searched from 1, searched from second
moments, left at second moments, or none. And how much of a path the last candidates have computed already: what reusing
the hidden states of prefixes could save.

Run: `.venv/bin/python benchmarks/depth.py`. Saves results/depth.json after every search and goes on where it stopped;
`--fresh` starts anew. About 2 CPU minutes for the experts, cached, and 10 for the searches.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from common import CACHE, RESULTS, save
from prefixes import shared_prefixes
from step_experts import step_experts

import evomerge
from evomerge.config import SearchFile, parse
from search_spaces.recipe import PathBody, Recipe

SEEDS, EVALUATIONS = (10, 11, 12, 13, 14), 120
MERGE = {"operator": "task_arithmetic", "layer_groups": 6, "weight": [0.0, 1.5]}
PATHS = {"kind": "data_flow", "order": "series"}
START = {"scale_start": "second_moments"}
SPACES: dict[str, tuple[dict[str, Any], str]] = {
    "parameter": (MERGE, "cma_es"),
    "data flow": (PATHS, "cat_cma"),
    "data flow, from second moments": (PATHS | START, "cat_cma"),
    "data flow, second moments alone": (PATHS | START | {"scales": "none"}, "cat_cma"),
    "data flow, no scales": (PATHS | {"scales": "none"}, "cat_cma"),
    "joint": ({"kind": "joint", "order": "series", "models": [MERGE, "expert-g"]}, "cat_cma"),
    "hybrid": ({"kind": "hybrid", "order": "series", "merge": MERGE}, "cat_cma"),
    "paper": (PATHS | {"form": "paper"}, "cma_es"),
}


def search_file(folder: Path, space: dict[str, Any], kind: str, seed: int) -> SearchFile:
    """Return the search of ``space``."""
    found = step_experts(0, cache=CACHE)
    value = {
        "name": "depth",
        "sources": {"base": str(found.base), "experts": list(map(str, found.experts.values())), "dtype": "float32"},
        "space": space,
        "objectives": [{"task": "both", "metric": "exact_match"}, {"task": "both_mc", "metric": "acc"}],
        "evaluation": {
            "search_documents": 48, "validation_documents": 64, "test_documents": 256,
            "include_path": [str(found.tasks)],
        },
        "optimizer": {"kind": kind, "seed": seed},
        "baselines": {"single_coefficient": 0, "random_search": False},
        "budget": {"evaluations": EVALUATIONS, "finalists": 4},
        "cluster": {"backend": "in_process", "workers": 1},
        "storage": f"sqlite:///{folder}/depth.db",
    }  # fmt: skip
    return parse(value, folder=folder, where="benchmark")


def walked(recipe: Recipe) -> str:
    """Return the path of ``recipe`` as text: slot.layer x scale."""
    if not isinstance(recipe.body, PathBody):
        return ""
    return " ".join(f"{hop.slot}.{hop.layer}x{hop.scale:.2f}" for hop in recipe.body.hops)


def row(space: dict[str, Any], kind: str, seed: int) -> dict[str, Any]:
    """Search once."""
    with tempfile.TemporaryDirectory() as folder:
        results = evomerge.run(search_file(Path(folder), space, kind, seed))
        assert results.winner is not None
        own = [c for c in results.candidates if c.origin == "optimizer" and c.state == "measured"]
        return {
            "seed": seed,
            "winner": results.winner.label,
            "winner_test": {name: each.value for name, each in results.estimate(results.winner, "test").items()},
            "best_search_of_optimizer": max(results.chooser.number(c, "search") for c in own),
            "shared_prefixes": shared_prefixes(results),
            "path": walked(results.winner.recipe),
        }


def main() -> None:
    """Search every space with every seed that is not there yet."""
    file = RESULTS / "depth.json"
    rows: dict[str, list[dict[str, Any]]] = {}
    if file.exists() and "--fresh" not in sys.argv:
        rows = json.loads(file.read_text(encoding="utf-8"))["spaces"]
    for seed in SEEDS:
        for name, (space, kind) in SPACES.items():
            done = rows.setdefault(name, [])
            if any(each["seed"] == seed for each in done):
                continue
            done.append(row(space, kind, seed))
            print(name, done[-1], flush=True)
            save("depth", {"evaluations": EVALUATIONS, "spaces": rows})


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    main()
