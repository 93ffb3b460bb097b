"""How fast a candidate is merged, and how that compares with mergekit from disk to disk.

    OMP_NUM_THREADS=1 python benchmarks/merging.py [--scratch DIR] [--tiny-only]

For a tiny model (0.3 M parameters, base + 4 experts, float32) and a random one of about 160 M (base + 3 experts,
bfloat16) it prints milliseconds of processor time per candidate, each candidate with weights and densities of its
own, and GB/s: the bytes of every source read once and of the result written once. With EVOMERGE_MERGEKIT_PYTHON set,
mergekit's run_merge runs on the same folders in the same run, once to warm up and once for the time; its ratio is
to our merge in memory and to our export.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.export import write_checkpoint
from evomerge.merging.mergekit_config import to_mergekit
from evomerge.merging.resident import ResidentModel
from search_spaces.operators import DareTies, Linear, Operator, TaskArithmetic, Ties
from search_spaces.recipe import Block, Blocks, Recipe, Source

DRIVER = """
import sys, json, time, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
text, folder = open(sys.argv[1]).read(), sys.argv[2]
for turn in range(2):
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    start = time.process_time()
    run_merge(config, f"{folder}-{turn}", options=MergeOptions(quiet=True, write_model_card=False))
    took = time.process_time() - start
print(json.dumps(took))
"""
TINY = {"vocab_size": 57, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
LARGE = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}


def make_family(root: Path, shape: dict[str, int], experts: int, dtype: torch.dtype) -> list[Path]:
    """Write a random base and experts that differ from it by small noise."""
    torch.manual_seed(0)
    heads = 8 if shape is TINY else 12
    config = transformers.LlamaConfig(**shape, num_attention_heads=heads, tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    folders = [root / "base", *(root / f"expert{i}" for i in range(experts))]
    for folder in folders:
        model.save_pretrained(folder)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 1e-3)
    return folders


def operators(experts: int, turn: int) -> dict[str, Operator]:
    """Return one operator of each kind; every turn has numbers of its own."""
    weights = tuple(0.2 + 0.1 * i + 0.01 * turn for i in range(experts))
    densities = tuple(0.3 + 0.1 * i + 0.005 * turn for i in range(experts))
    return {
        "task_arithmetic": TaskArithmetic(weights=weights),
        "linear": Linear(weights=(0.5, *weights)),
        "ties": Ties(weights=weights, densities=densities),
        "dare_ties": DareTies(weights=weights, densities=densities),
    }


def measure(root: Path, shape: dict[str, int], experts: int, dtype: str, turns: int) -> None:
    """Print one row an operator."""
    transformers.utils.logging.disable_progress_bar()
    folders = make_family(root, shape, experts, getattr(torch, dtype))
    checkpoints = [Checkpoint.open(folder) for folder in folders]
    model = ResidentModel(checkpoints, dtype=dtype)
    sources = tuple(Source(path=str(folder)) for folder in folders)
    moved = sum(checkpoint.bytes for checkpoint in checkpoints) + model.model.get_memory_footprint()
    print(f"\n{model.model.num_parameters() / 1e6:.1f} M parameters, base + {experts}, {dtype}")
    print(f"{'operator':16} {'ms':>9} {'GB/s':>6} {'export ms':>10} {'mergekit ms':>12} {'/merge':>7} {'/export':>8}")
    for kind in operators(experts, 0):
        recipes = []
        for turn in range(turns + 1):
            block = Block(layers=(0, shape["num_hidden_layers"]), operator=operators(experts, turn)[kind])
            recipes.append(Recipe(sources=sources, dtype=dtype, body=Blocks(blocks=(block,))))
        model.apply(recipes[0])
        start = time.process_time()
        for recipe in recipes[1:]:
            model.apply(recipe)
        own = (time.process_time() - start) / turns * 1e3
        start = time.process_time()
        write_checkpoint(recipes[1], root / f"export-{kind}")
        export = (time.process_time() - start) * 1e3
        theirs = mergekit_ms(root, kind, recipes[1])
        ratios = f"{theirs:12.0f} {theirs / own:7.0f} {theirs / export:8.1f}" if theirs else f"{'-':>12}"
        print(f"{kind:16} {own:9.2f} {moved / own / 1e6:6.2f} {export:10.0f} {ratios}", flush=True)


def mergekit_ms(root: Path, kind: str, recipe: Recipe) -> float | None:
    """Return the milliseconds that mergekit takes for ``recipe``; none when there is no environment for it."""
    python = os.environ.get("EVOMERGE_MERGEKIT_PYTHON")
    if not python:
        return None
    file = root / f"{kind}.yml"
    file.write_text(to_mergekit(recipe))
    command = [python, "-c", DRIVER, str(file), str(root / f"mergekit-{kind}")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"mergekit failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])) * 1e3


def main() -> None:
    """Measure both models in a scratch folder that is removed at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where to put about 6 GB of models for the time of the run")
    parser.add_argument("--tiny-only", action="store_true", help="leave the 160 M model out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        measure(Path(folder) / "tiny", TINY, 4, "float32", 20)
        if not arguments.tiny_only:
            measure(Path(folder) / "large", LARGE, 3, "bfloat16", 2)


if __name__ == "__main__":
    main()
