"""How near merging comes to the speed of memory, and how it compares with mergekit from disk to disk.

    OMP_NUM_THREADS=1 python benchmarks/merge_bandwidth.py [--scratch DIR] [--dtypes bfloat16 float32] [--only mergekit]

On a random model of about 162 M parameters with 3 experts, per operator:

* bandwidth: the bytes of every source read once and of the result written once, over the time of a merge into a live
  model, as a share of what a plain copy of as many bytes reaches. Copies and merges take turns, and the medians count.
  `new` merges have weights and densities that were never seen; `again` repeats them, so that thresholds are known.
* preparing: processor time of the histograms of every expert, per million elements, once a search.
* copying: every source read once through a small buffer, and a file of the result's size written and synced.
* mergekit: its run_merge beside `evomerge merge`'s export of the same recipe, both in processes of their own, both
  warm (the best of the third and later merges counts; four merges, or as many as 10 s hold, up to twelve). Ours is
  synced to the disk, mergekit's is not. Peaks are those of memory in the second merge, imports included: what was
  private, and all that was resident.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import transformers

from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.mergekit_config import to_mergekit
from evomerge.merging.resident import ResidentModel
from evomerge.merging.sources import pin
from search_spaces.operators import (
    Breadcrumbs,
    DareLinear,
    DareTies,
    Della,
    Linear,
    Operator,
    Sce,
    TaskArithmetic,
    Ties,
)
from search_spaces.recipe import Block, Blocks, Recipe, Source

SHAPE = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
EXPERTS = 3
TURNS = 3
BESIDE_MERGEKIT = ("linear", "task_arithmetic", "ties", "dare_ties")
TIMED = """
import json, shutil, sys, threading, time
{imports}

def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return [int(lines[key].split()[0]) / 1024 for key in ("RssAnon", "VmRSS")]

def watch():
    while not done.wait(0.002):
        peaks[:] = map(max, peaks, memory())

folder, times = sys.argv[2], []
peaks, done = [0.0, 0.0], threading.Event()
watcher = threading.Thread(target=watch)
began = time.perf_counter()
for turn in range(12):
    if turn >= 4 and time.perf_counter() - began > 10:
        break
    if turn == 1:
        watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    {merge}
    times.append((time.perf_counter() - wall, time.process_time() - cpu))
    shutil.rmtree(f"{{folder}}-{{turn}}")
    if turn == 1:
        done.set()
        watcher.join()
print(json.dumps([*min(times[2:]), *peaks]))
"""
THEIRS = TIMED.format(
    imports="import yaml\nfrom mergekit.config import MergeConfiguration\nfrom mergekit.merge import run_merge\n"
    "from mergekit.options import MergeOptions\ntext = open(sys.argv[1]).read()",
    merge="run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), f'{folder}-{turn}', "
    "options=MergeOptions(quiet=True, write_model_card=False))",
)
OURS = TIMED.format(
    imports="from pathlib import Path\nfrom evomerge.merging.export import write_checkpoint\n"
    "from search_spaces.recipe import Recipe\nrecipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())",
    merge="write_checkpoint(recipe, Path(f'{folder}-{turn}'))",
)

COPY = TIMED.format(
    imports="""import os
from pathlib import Path
files = [Path(line) for line in open(sys.argv[1]).read().splitlines()]
buffer = bytearray(1 << 20)

def copy(to):
    os.mkdir(to)
    for file in files:
        with file.open("rb", buffering=0) as source:
            while source.readinto(buffer):
                pass
    with open(f"{to}/copy", "wb", buffering=0) as target:
        left = files[0].stat().st_size
        while left:
            left -= target.write(memoryview(buffer)[:left])
        os.fsync(target.fileno())""",
    merge="copy(f'{folder}-{turn}')",
)


def make_family(root: Path, dtype: torch.dtype, shape: dict[str, int] = SHAPE, experts: int = EXPERTS) -> list[Path]:
    """Write a random base and experts that differ from it by small noise."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape, num_attention_heads=12, tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    folders = [root / "base", *(root / f"expert{i}" for i in range(experts))]
    for folder in folders:
        model.save_pretrained(folder)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 1e-3)
    return folders


def operators(turn: int) -> dict[str, Operator]:
    """Return one operator of each kind; every turn has numbers of its own."""
    weights = tuple(0.2 + 0.1 * i + 0.01 * turn for i in range(EXPERTS))
    densities = tuple(0.3 + 0.1 * i + 0.005 * turn for i in range(EXPERTS))
    return {
        "linear": Linear(weights=(0.5, *weights)),
        "task_arithmetic": TaskArithmetic(weights=weights),
        "ties": Ties(weights=weights, densities=densities),
        "breadcrumbs": Breadcrumbs(weights=weights, densities=densities, gammas=(0.01,) * EXPERTS),
        "sce": Sce(select_topk=0.4 + 0.005 * turn),
        "dare_linear": DareLinear(weights=weights, densities=densities),
        "dare_ties": DareTies(weights=weights, densities=densities),
        "della": Della(weights=weights, densities=densities, spreads=(0.2,) * EXPERTS),
    }


def recipe_of(operator: Operator, folders: list[Path], dtype: str) -> Recipe:
    """Return the recipe that merges every tensor by ``operator``."""
    sources = tuple(Source(path=str(folder)) for folder in folders)
    block = Block(layers=(0, SHAPE["num_hidden_layers"]), operator=operator)
    return Recipe(sources=sources, dtype=dtype, body=Blocks(blocks=(block,)))


def pinned(recipe: Recipe) -> Recipe:
    """Return ``recipe`` as a search has it: what is prepared of sources is kept under their digests."""
    return recipe.model_copy(update={"sources": tuple(map(pin, recipe.sources))})


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of ``work``."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bandwidths(folders: list[Path], dtype: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return a row per operator, and the processor time of preparing."""
    checkpoints = [Checkpoint.open(folder) for folder in folders]
    model = ResidentModel(checkpoints, dtype=dtype)
    size = model.model.get_memory_footprint()
    moved = sum(checkpoint.bytes for checkpoint in checkpoints) + size
    source = np.ones(moved // 2, np.uint8)
    target = np.empty_like(source)
    np.copyto(target, source)
    rows = []
    for kind in operators(0):
        recipes = [pinned(recipe_of(operators(turn)[kind], folders, dtype)) for turn in range(TURNS + 2)]
        turns = 1 if kind == "della" else TURNS
        for recipe in recipes[-2:]:  # what is prepared once: some at the second merge
            model.apply(recipe)
        copies, new, again = [], [], []
        for recipe in recipes[:turns]:
            copies.append(seconds(lambda: np.copyto(target, source)))
            new.append(seconds(lambda recipe=recipe: model.apply(recipe)))
            again.append(seconds(lambda recipe=recipe: model.apply(recipe)))
        copy = statistics.median(copies)
        row = {"operator": kind, "copy_gb_s": moved / copy / 1e9}
        for name, times in (("new", new), ("again", again)):
            took = statistics.median(times)
            row |= {f"{name}_ms": took * 1e3, f"{name}_gb_s": moved / took / 1e9, f"{name}_share": copy / took}
        rows.append(row)
        print(
            f"{kind:16} new {row['new_ms']:8.0f} ms {row['new_gb_s']:6.2f} GB/s {row['new_share']:6.1%} of a copy   "
            f"again {row['again_ms']:8.0f} ms {row['again_share']:6.1%}   copy {row['copy_gb_s']:5.1f} GB/s",
            flush=True,
        )
    return rows, {"cpu_ms_per_million_elements": preparing(checkpoints, model)}


def preparing(checkpoints: list[Checkpoint], model: ResidentModel) -> float:
    """Return the CPU-ms per million elements of an expert that the first two TIES merges cost more than later ones.

    The first guesses thresholds where it can, the second makes what histograms are missing; densities are always new.
    """
    fresh = ResidentModel(checkpoints, dtype=model.dtype)
    folders = [checkpoint.path for checkpoint in checkpoints]
    spent = []
    for turn in range(5, 5 + 2 + TURNS):
        recipe = recipe_of(operators(turn)["ties"], folders, model.dtype)
        started = time.process_time()
        fresh.apply(recipe)
        spent.append(time.process_time() - started)
    more = sum(spent[:2]) - 2 * statistics.median(spent[2:])
    each = more * 1e3 / (EXPERTS * fresh.model.num_parameters() / 1e6)
    print(f"preparing: {each:.2f} CPU-ms per million elements of an expert")
    return each


def beside_mergekit(root: Path, folders: list[Path], dtype: str) -> list[dict[str, Any]]:
    """Return a row per operator that both know: seconds and MiB of each, from disk to disk."""
    rows = []
    files = root / "files.txt"
    files.write_text("\n".join(str(folder / "model.safetensors") for folder in folders), encoding="utf-8")
    copy = timed(sys.executable, COPY, files, root / "copy")
    print(f"copying {copy['wall_s']:.2f} s, {copy['cpu_s']:.2f} s of processor time")
    for kind in BESIDE_MERGEKIT:
        recipe = recipe_of(operators(1)[kind], folders, dtype)
        config, ours = root / f"{kind}.yml", root / f"{kind}.json"
        config.write_text(to_mergekit(recipe), encoding="utf-8")
        ours.write_text(recipe.to_json(), encoding="utf-8")
        own = timed(sys.executable, OURS, ours, root / f"export-{kind}")
        theirs = timed(common.mergekit_python(), THEIRS, config, root / f"mergekit-{kind}")
        row = {"operator": kind, "evomerge": own, "mergekit": theirs}
        row |= {"times_faster_wall": theirs["wall_s"] / own["wall_s"], "times_less_cpu": theirs["cpu_s"] / own["cpu_s"]}
        row |= {"copy": copy, "times_a_copy_wall": own["wall_s"] / copy["wall_s"]}
        rows.append(row)
        print(
            f"{kind:16} export {own['wall_s']:6.2f} s ({own['private_mib']:.0f} MiB private)   mergekit "
            f"{theirs['wall_s']:6.2f} s ({theirs['private_mib']:.0f} MiB private)   "
            f"{row['times_faster_wall']:.1f} times faster, {row['times_less_cpu']:.1f} times less processor time, "
            f"{row['times_a_copy_wall']:.1f} times a copy",
            flush=True,
        )
    return rows


def timed(python: str, code: str, file: Path, to: Path) -> dict[str, float]:
    """Run ``code`` in a process of its own; return what it says of its merges."""
    done = subprocess.run([python, "-c", code, str(file), str(to)], capture_output=True, text=True, cwd=common.ROOT)
    if done.returncode:
        sys.exit(f"{kind_of(code)} failed:\n{done.stderr[-2000:]}")
    wall, cpu, private, resident = json.loads(done.stdout.splitlines()[-1])
    return {"wall_s": wall, "cpu_s": cpu, "private_mib": private, "resident_mib": resident}


def kind_of(code: str) -> str:
    """Return whose code it is."""
    return {THEIRS: "mergekit", OURS: "evomerge"}.get(code, "copying")


def main() -> None:
    """Measure in a scratch folder that is removed at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where to put up to 10 GB of models for the time of the run")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--only", choices=["bandwidth", "mergekit"], help="leave the other one out")
    parser.add_argument("--name", default="merge", help="begins the names of the two files with results")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    about = {"threads": torch.get_num_threads(), "experts": EXPERTS, "shape": SHAPE}
    memory: dict[str, Any] = {}
    disk: dict[str, Any] = {}
    for dtype in arguments.dtypes:
        print(f"\n{dtype}, base + {EXPERTS}, {torch.get_num_threads()} thread(s)")
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            os.environ["EVOMERGE_CACHE"] = str(Path(folder) / "cache")
            folders = make_family(Path(folder), getattr(torch, dtype))
            if arguments.only != "mergekit":
                rows, prepared = bandwidths(folders, dtype)
                memory[dtype] = {"bandwidth": rows, "preparing": prepared}
            if arguments.only != "bandwidth":
                disk[dtype] = {"disk_to_disk": beside_mergekit(Path(folder), folders, dtype)}
    for part, result in (("bandwidth", memory), ("beside_mergekit", disk)):
        if result:
            common.save(f"{arguments.name}_{part}", about | result)


if __name__ == "__main__":
    main()
