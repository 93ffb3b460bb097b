"""Runs every benchmark, one after another (`make bench`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = (
    "footprint",
    "candidate_cost",
    "dashboard",
    "evaluation",
    "merge_bandwidth",
    "operator_cost",
    "ask_tell",
    "asynchrony",
    "two_stage",
    "search_quality",
    "objectives",
    "optimizers",
    "map_pareto",
    "racing",
    "racing_replay",
    "preselection",
    "item_response",
    "natural_niches_digits",
    "natural_niches_experts",
    "calibration",
    "compression",
    "demo_quality",
    "scale",
    "chaos",
    "data_flow",
    "depth",
)


def main() -> None:
    """Run them; stop at the first that fails."""
    for name in NAMES:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py"))], check=True)


if __name__ == "__main__":
    main()
