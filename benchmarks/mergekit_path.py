"""The peer's way of measuring candidates: mergekit to disk, then lm-eval on what was written; see peer_candidate.py."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from common import mergekit_python

from evomerge.merging.mergekit_config import to_mergekit
from search_spaces.recipe import Recipe


def search_tasks(source: Path, documents: Mapping[str, Sequence[int]], target: Path) -> Path:
    """Write the foundry's tasks in folder ``source`` with ``documents`` alone, so that no others are paid for."""
    target.mkdir()
    for task, ids in documents.items():
        config = yaml.safe_load((source / f"{task}.yaml").read_text(encoding="utf-8"))
        lines = Path(config["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8").splitlines()
        data = target / f"{task}.jsonl"
        data.write_text("\n".join(lines[i] for i in ids) + "\n", encoding="utf-8")
        config["dataset_kwargs"]["data_files"]["test"] = str(data)
        (target / f"{task}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return target


def measure_by_mergekit(
    recipes: Sequence[Recipe], *, tasks: Path, names: Sequence[str], folder: Path, warm_up: int = 2
) -> dict[str, Any]:
    """Return CPU seconds a candidate, and the scores by task of each recipe; the first ``warm_up`` are not counted.

    One warm process of mergekit's environment with one thread, like a worker here.
    """
    job = {
        "configs": [to_mergekit(recipe) for recipe in recipes],
        "tasks": str(tasks),
        "names": list(names),
        "warm_up": warm_up,
        "folder": str(folder),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    script = Path(__file__).with_name("peer_candidate.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # waiting threads would burn CPU time
    command = [mergekit_python(), str(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
