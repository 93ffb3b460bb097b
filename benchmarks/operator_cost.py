"""What a candidate of every operator costs, beside task arithmetic in the same run.

    OMP_NUM_THREADS=1 python benchmarks/operator_cost.py [--turns N] [--operators KIND ...]

A random model of 8 M parameters in bfloat16, base + 3 experts (1 or 2 where it takes no more). Every candidate
has another genome of the operator's own parameter space. `first` is the first candidate, which prepares what can be
remembered, `later` the median of the others, `length` the median with a gene for the length of the step. Each is the
processor time over that of a task arithmetic candidate of as many experts, measured right before it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from common import save
from merge_bandwidth import make_family

from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.resident import ResidentModel
from evomerge.merging.sources import pin
from search_spaces.genes import Genome
from search_spaces.operators import OPERATORS
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.recipe import Source

NOT_MEASURED = ("fisher", "regmean", "regmean_plus", "rcp", "ota", "lora_lego", "evo_lora")  # other inputs than models
MEASURED = [kind for kind in OPERATORS if kind not in NOT_MEASURED]
SHAPE = {"vocab_size": 1000, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 3}


def space(kind: str, folders: list[Path], **settings: object) -> ParameterSpace:
    """Return the parameter space of an operator over ``folders``, base first."""
    needed = {"metrics": [0.5] * (len(folders) - 1)} if kind == "mwa" else {}
    return ParameterSpace(
        settings=ParameterSpaceSettings.model_validate({"operator": kind, **needed, **settings}),
        sources=tuple(pin(Source(path=str(folder))) for folder in folders),
        expert_names=tuple(folder.name for folder in folders[1:]),
        layers=SHAPE["num_hidden_layers"],
    )


def times(model: ResidentModel, searched: ParameterSpace, plain: ParameterSpace, turns: int) -> list[float]:
    """Return the ratio to task arithmetic of ``turns`` candidates, in order."""
    random = np.random.default_rng(0)
    ratios = []
    for _ in range(turns):
        taken = [_time(model, each, random) for each in (plain, searched)]
        ratios.append(taken[1] / taken[0])
    return ratios


def _time(model: ResidentModel, searched: ParameterSpace, random: np.random.Generator) -> float:
    genes = searched.genes
    recipe = searched.decode(Genome(random.uniform(genes.low, genes.high)))
    start = time.process_time()
    model.apply(recipe)
    return time.process_time() - start


def main() -> None:
    """Measure every operator and save the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=6, help="candidates of each operator")
    parser.add_argument("--operators", nargs="+", choices=MEASURED, default=MEASURED, metavar="KIND")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["EVOMERGE_CACHE"] = scratch
        folders = make_family(Path(scratch), torch.bfloat16, SHAPE, 3)
        checkpoints = [Checkpoint.open(folder) for folder in folders]
        models = {count: ResidentModel(checkpoints[: count + 1], dtype="bfloat16") for count in (1, 2, 3)}
        print(f"{'operator':18} {'first':>7} {'later':>7} {'length':>7}   (times task arithmetic)")
        for kind in arguments.operators:
            experts = OPERATORS[kind].most_experts or 3
            used = folders[: experts + 1]
            plain = space("task_arithmetic", used)
            first, *later = times(models[experts], space(kind, used), plain, arguments.turns)
            _, *length = times(models[experts], space(kind, used, length=(0.2, 1.0)), plain, arguments.turns)
            row = {"first": first, "later": statistics.median(later), "length": statistics.median(length)}
            found[kind] = {name: round(value, 1) for name, value in row.items()}
            print(f"{kind:18} {first:7.1f} {row['later']:7.1f} {row['length']:7.1f}", flush=True)
    if len(found) == len(MEASURED):
        save(
            "operator_cost", {"question": "processor time of a candidate over that of task arithmetic", "ratios": found}
        )


if __name__ == "__main__":
    main()
