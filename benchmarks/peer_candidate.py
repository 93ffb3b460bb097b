"""The peer's side of candidate_cost.py; runs in mergekit's environment and knows nothing of evomerge.

Reads a job (JSON), merges and evaluates each config, prints CPU seconds per candidate as JSON on the last line.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def cpu_seconds() -> float:
    """CPU seconds of this process and of its finished children (environment probes of lm-eval)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Run the job."""
    import lm_eval
    import yaml
    from lm_eval.tasks import TaskManager
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    logging.disable(logging.WARNING)
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"]) / "peer"
    manager = TaskManager(include_path=job["tasks"], include_defaults=False)
    spent, parts, scores = [], [], []
    for text in job["configs"]:
        shutil.rmtree(folder, ignore_errors=True)
        started = cpu_seconds()
        config = MergeConfiguration.model_validate(yaml.safe_load(text))
        run_merge(config, str(folder), MergeOptions(copy_tokenizer=True, quiet=True))
        merged = cpu_seconds()
        found = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "dtype": "float32"},
            tasks=job["names"],
            batch_size=64,
            device="cpu",
            task_manager=manager,
            bootstrap_iters=0,
            verbosity="ERROR",
        )
        spent.append(cpu_seconds() - started)
        parts.append(merged - started)
        scores.append({task: first_metric(found["results"][task]) for task in job["names"]})
    kept = slice(job["warm_up"], None)
    counted = len(spent[kept])
    print(
        json.dumps(
            {
                "cpu_seconds": sum(spent[kept]) / counted,
                "parts": {
                    "merge": sum(parts[kept]) / counted,
                    "evaluate": (sum(spent[kept]) - sum(parts[kept])) / counted,
                },
                "candidates": counted,
                "scores": scores,
                "at": time.strftime("%Y-%m-%d"),
            }
        )
    )


def first_metric(result: dict[str, object]) -> object:
    """Return the first metric's value."""
    return next(value for key, value in result.items() if "," in key and "stderr" not in key)


if __name__ == "__main__":
    main()
