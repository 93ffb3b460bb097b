"""How long the command line takes to answer, and how much private memory a worker holds.

Question: is `evomerge --help` there within half a second, and does a worker keep, above its imports, at most one
writable copy of the model and 256 MiB?

Set-up: `--help` is run ten times in processes of its own; the median counts. The worker is a process of its own that
imports everything, notes its anonymous memory (RssAnon: what is written and belongs to this process alone; the pages of
mapped sources are the page cache's), makes a worker for a random Llama of about 100 M parameters in bfloat16 (base and
three experts), evaluates two recipes on one of the demo's tasks, and reads it again. Random
weights do: memory does not depend on what a model can do.

Run: `.venv/bin/python benchmarks/footprint.py`. Writes results/footprint.json.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import experts, save

TASK = "add_j"


def help_seconds() -> float:
    """Median wall time of `evomerge --help`."""
    times = []
    for _ in range(10):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "evomerge.cli", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def make_models(folder: Path, tokenizer: Path) -> list[str]:
    """Write a base and three experts of about 100 M parameters with the demo's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=13,
        num_attention_heads=12,
        num_key_value_heads=12,
        eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
    )
    paths = []
    for seed in range(4):
        torch.manual_seed(seed)
        path = folder / f"model-{seed}"
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / name, path / name)
        paths.append(str(path))
    return paths


def worker_memory(folders: list[str], tasks: str) -> dict[str, float]:
    """MiB of private memory in a process of its own."""
    call = [sys.executable, __file__, "worker", json.dumps(folders), tasks]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def anonymous_bytes() -> int:
    """Memory that this process alone has written, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def worker(folders: list[str], tasks: str) -> None:
    """The process: print model size and private memory above the imports as JSON."""
    import torch

    import evaluators.evaluator  # noqa: F401 - the imports are what the reading before leaves out
    import evomerge.merging.resident  # noqa: F401
    from evaluators.objective import EvaluationSettings, Objective
    from evomerge.worker import WorkerSpec
    from search_spaces.operators import TaskArithmetic
    from search_spaces.recipe import Block, Blocks, Recipe, Source

    torch.zeros(8).sum()
    before = anonymous_bytes()
    objectives = (Objective(task=TASK, metric="exact_match"),)
    settings = EvaluationSettings(include_path=(tasks,), tokens_per_batch=512)
    made = WorkerSpec(tuple(folders), 0, "bfloat16", objectives, settings)()
    for weight in (0.3, 0.6):
        block = Block(layers=(0, 13), operator=TaskArithmetic(weights=(weight,) * 3))
        recipe = Recipe(sources=tuple(Source(path=f) for f in folders), body=Blocks(blocks=(block,)))
        made.evaluate(recipe.to_json(), {TASK: tuple(range(16))})
    after = anonymous_bytes()
    size = sum(p.numel() * p.element_size() for p in made._resident.model.parameters())
    mebibyte = 2**20
    print(json.dumps({"model_mib": size / mebibyte, "private_above_imports_mib": (after - before) / mebibyte}))


def main() -> None:
    """Measure both."""
    foundry = experts()
    with tempfile.TemporaryDirectory() as name:
        memory = worker_memory(make_models(Path(name), foundry.base), str(foundry.tasks))
    seconds = help_seconds()
    allowed = memory["model_mib"] + 256
    print(f"evomerge --help: {seconds:.2f} s")
    print(f"worker: model {memory['model_mib']:.0f} MiB, private above imports "
          f"{memory['private_above_imports_mib']:.0f} MiB (at most {allowed:.0f})")  # fmt: skip
    save("footprint", {"help_seconds": seconds, "worker": {**memory, "allowed_mib": allowed}})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        worker(json.loads(sys.argv[2]), sys.argv[3])
    else:
        main()
