"""How fast a candidate is measured, beside `lm_eval.simple_evaluate` and beside the bare forward passes.

Question: what does measuring one candidate cost on tasks of several prompt shapes, as a share of what
`lm_eval.simple_evaluate(model="hf")` called afresh for it costs, and how far is that from the model's bare arithmetic?

Set-up: the demo's base model (328 k parameters) and a Llama of 110 M random parameters. One task a shape: five shots
that all documents share or that each draws for itself, no shots, long choices or single tokens, generation. Both sides
have the same threads, model files, documents and dtype. lm-eval is warm: one TaskManager without the default tasks,
data sets cached, bootstrap off, batch size 64, one call before the first that counts; like its users it loads the
model for every candidate. Its time with the model already loaded is printed, too ("loaded"). Ours is
`LmEvalEvaluator.evaluate` on a model whose plan is made, as for every candidate but the first. Runs of both alternate;
medians. The largest difference of a score is printed: arg-max ties of random models apart it must be zero.

Roofline: a plain loop of the model's body over the plan's own batches, with the same masks and shared prefixes, and of
its head at the scored positions; `evaluate` is compared with it in wall time, alternating. Achieved arithmetic is
compared with a large matrix product in the same dtype.

Plan: documents of five drawn shots and of none, 10,000 each, planned without and with the cache on disk.

Run: `.venv/bin/python benchmarks/evaluation.py` (about six minutes on two cores; with a GPU in bf16 on the GPU).
`--only demo|large|plan|budget`, `--task PART_OF_NAME`, `--threads N`. Writes results/evaluation.json, on a GPU
results/evaluation_gpu.json; until it is complete, .part.json after every task, from where the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from common import RESULTS, experts, machine, save
from evaluation_tasks import Shape, made_up, write_model, write_tasks

from evaluators.evaluation import Documents, Evaluation
from evaluators.evaluator import LmEvalEvaluator
from evaluators.meter import Meter
from evaluators.objective import EvaluationSettings, Objective
from evaluators.scoring import attention_mask
from evaluators.shared_cache import Prefixes
from evaluators.tasks import TaskSuite

CONTEXT = 1024  # the demo's models know 64 positions; speed does not ask whether the text makes sense
DEMO = (
    Shape("five_shots_shared_long_choices", shots=5),
    Shape("five_shots_drawn_long_choices", shots=5, fixed=False),
    Shape("zero_shot_long_choices", question=96, choice=16),
    Shape("zero_shot_single_token", choice=1),
    Shape("five_shots_shared_single_token", choice=1, shots=5),
    Shape("generation", question=12, choice=12, generates=True),
    Shape("generation_five_shots_shared", choice=12, shots=5, generates=True),
)
LARGE = tuple(
    Shape(**{**shape.__dict__, "documents": count}) for shape, count in zip(DEMO, (4, 4, 6, 16, 6, 16, 8), strict=True)
)


def clocks(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What ``run`` returns, its wall and its CPU seconds (finished children included)."""
    cpu, start = cpu_seconds(), time.perf_counter()
    found = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, time.perf_counter() - start, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children; in microseconds, where `os.times` counts hundredths."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Peer:
    """lm-eval on the same tasks: afresh from files, or with a model that is loaded."""

    def __init__(self, folder: Path, tasks: Path, device: str, dtype: str) -> None:
        from lm_eval.tasks import TaskManager

        self._manager = TaskManager(include_path=str(tasks), include_defaults=False)
        self._folder, self._device, self._dtype = folder, device, dtype
        self._options = {"batch_size": 64, "max_length": CONTEXT}

    def afresh(self, task: str) -> float:
        """The task's score, everything made for this call."""
        arguments = {"pretrained": str(self._folder), "dtype": self._dtype, "max_length": CONTEXT}
        return self._score(task, model="hf", model_args=arguments, batch_size=64, device=self._device)

    def loaded(self, task: str, model: Any, tokenizer: Any) -> float:
        """The task's score with a model that is in memory."""
        from lm_eval.models.huggingface import HFLM

        return self._score(task, model=HFLM(pretrained=model, tokenizer=tokenizer, **self._options))

    def _score(self, task: str, **options: Any) -> float:
        import lm_eval

        found = lm_eval.simple_evaluate(
            tasks=[task], task_manager=self._manager, bootstrap_iters=0, verbosity="ERROR", **options
        )
        assert found is not None
        return next(v for k, v in found["results"][task].items() if "," in k and "stderr" not in k)


class Ours:
    """Our evaluator of one task."""

    def __init__(
        self, shape: Shape, tasks: Path, tokenizer: Any, *, cache: Path | None = None, tokens: Any = "auto"
    ) -> None:
        metric = "exact_match" if shape.generates else "acc"
        settings = EvaluationSettings(include_path=(str(tasks),), tokens_per_batch=tokens)
        suite = TaskSuite.load([Objective(task=shape.name, metric=metric)], settings)
        self.evaluator = LmEvalEvaluator(suite, tokenizer, settings=settings, max_length=CONTEXT, cache=cache)
        self.documents = Documents({shape.name: tuple(range(shape.documents))})

    def __call__(self, model: Any) -> Evaluation:
        """Measure ``model``."""
        found = self.evaluator.evaluate(model, self.documents)
        assert isinstance(found, Evaluation), found
        return found


def bare(model: Any, plan: Any) -> None:
    """The forward passes of ``plan`` and nothing else: body on all tokens, head where something is scored."""
    device, prefixes = model.device, Prefixes()
    meter = Meter(device=device, timeout_seconds=1e9)
    with torch.inference_mode():
        for batch in plan.scoring:
            options: dict[str, Any] = {}
            if (visible := batch.visible(device)) is not None:
                options["attention_mask"] = attention_mask(model, visible)
                options["position_ids"] = batch.positions.to(device)
            if batch.prefix:
                options["past_key_values"] = prefixes.cache(model, batch.prefix, meter)
            states = model.model(input_ids=batch.ids.to(device), use_cache=False, **options).last_hidden_state
            logits = model.lm_head(states.reshape(-1, states.shape[-1])[batch.places.to(device)])
    logits[0, 0].item()


def peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    size = 8192 if device == "cuda" else 1024
    one = torch.randn(size, size, device=device, dtype=dtype)
    best = min(clocks(lambda: (one @ one)[0, 0].item())[1] for _ in range(5))
    return 2 * size**3 / best


def measure(shape: Shape, model: Any, tokenizer: Any, peer: Peer, tasks: Path, *, repeats: int) -> dict[str, Any]:
    """Both sides on one task, alternating."""
    ours = Ours(shape, tasks, tokenizer)
    plan, planned, _ = clocks(lambda: ours.evaluator.prepare(ours.documents, model=model))
    score = ours(model).scores
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(model),
        "afresh": lambda: peer.afresh(shape.name),
        "loaded": lambda: peer.loaded(shape.name, model, tokenizer),
    }
    if plan.scoring:
        bare(model, plan)
        sides["bare"] = lambda: bare(model, plan)
    runs: dict[str, list[tuple[Any, float, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            runs[name].append(clocks(run))
    wall = {name: statistics.median(run[1] for run in found) for name, found in runs.items()}
    cpu = {name: statistics.median(run[2] for run in found) for name, found in runs.items()}
    mine = next(iter(score.values())).value
    found = {
        "documents": shape.documents,
        "plan_seconds": planned,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "times_faster_wall": wall["afresh"] / wall["ours"],
        "times_faster_cpu": cpu["afresh"] / cpu["ours"],
        "times_faster_than_loaded_cpu": cpu["loaded"] / cpu["ours"],
        "tokens": runs["ours"][-1][0].cost.tokens,
        "score_difference": abs(mine - runs["afresh"][-1][0]),
    }
    if plan.scoring:
        for clock, name in ((1, "wall_over_bare"), (2, "cpu_over_bare")):
            pairs = zip(runs["ours"], runs["bare"], strict=True)
            found[name] = statistics.median(one[clock] / other[clock] for one, other in pairs)
    return found


def measure_model(
    run: Run, name: str, folder: Path, shapes: Sequence[Shape], words: list[str], *, repeats: int, scratch: Path
) -> None:
    """All shapes for one model that ``run`` does not have yet."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tasks = scratch / f"tasks-{name}"
    write_tasks(tasks, shapes, words)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    peer = Peer(folder, tasks, device, str(dtype).removeprefix("torch."))
    peer.afresh(shapes[-1].name)
    body = sum(p.numel() for p in model.model.layers.parameters())
    top = peak(device, dtype)
    about = {"parameters": model.num_parameters(), "device": device, "dtype": str(dtype)}
    found = run.found.setdefault(name, about | {"shapes": {}})["shapes"]
    print(f"\n{name}: times faster than lm-eval (CPU time / wall time; loaded: CPU time, model in memory)")
    print("| task | ours, CPU ms | afresh | loaded | wall, CPU over bare | share of peak | score differs by |")
    print("|---|---|---|---|---|---|---|")
    for shape in shapes:
        row = found.get(shape.name) or measure(shape, model, tokenizer, peer, tasks, repeats=repeats)
        row["share_of_peak"] = 2 * body * row["tokens"] / row["wall_seconds"]["ours"] / top
        found[shape.name] = row
        run.save_part()
        print(
            f"| {shape.name} | {row['cpu_seconds']['ours'] * 1e3:.0f} "
            f"| {row['times_faster_cpu']:.1f} / {row['times_faster_wall']:.1f} "
            f"| {row['times_faster_than_loaded_cpu']:.1f} "
            f"| {row.get('wall_over_bare', float('nan')):.2f}, {row.get('cpu_over_bare', float('nan')):.2f} "
            f"| {row['share_of_peak']:.2f} | {row['score_difference']:.3f} |",
            flush=True,
        )
    worst = max((row["wall_over_bare"] for row in found.values() if "wall_over_bare" in row), default=float("nan"))
    least = min(row["times_faster_cpu"] for row in found.values())
    print(
        f"{name}: at least {least:.1f} times faster in CPU time, at most {worst:.2f} times the bare passes", flush=True
    )


def measure_budget(folder: Path, words: list[str], budgets: Sequence[int], *, documents: int, scratch: Path) -> Any:
    """CPU (on a GPU wall) microseconds a token at each budget: medians of three runs, alternating."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if cuda else torch.float32).eval()
    model, tokenizer = model.to("cuda" if cuda else "cpu"), AutoTokenizer.from_pretrained(folder)
    shape = Shape("zero_shot_long_choices", question=12, choice=24, documents=documents)
    write_tasks(scratch / "tasks-budget", (shape,), words)
    sides = {budget: Ours(shape, scratch / "tasks-budget", tokenizer, tokens=budget) for budget in budgets}
    runs: dict[int, list[float]] = {budget: [] for budget in budgets}
    for _ in range(3):
        for budget, ours in sides.items():
            ours.evaluator.prepare(ours.documents, model=model)
            found, wall, cpu = clocks(lambda ours=ours: ours(model))  # type: ignore[misc]
            runs[budget].append(1e6 * (wall if cuda else cpu) / found.cost.tokens)
    row = {budget: statistics.median(found) for budget, found in runs.items()}
    print(f"{model.num_parameters():,} parameters, us a token:", {k: round(v, 1) for k, v in row.items()}, flush=True)
    return row


PLANNED = (
    Shape("plan_zero_shots", documents=10_000),
    Shape("plan_five_shots_drawn", shots=5, fixed=False, documents=10_000),
)


def measure_plan(folder: Path, words: list[str], *, scratch: Path) -> dict[str, Any]:
    """Wall and CPU seconds of a plan made, and of one found on disk."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    write_tasks(scratch / "tasks-plan", PLANNED, words)
    found: dict[str, Any] = {}
    for shape in PLANNED:
        row: dict[str, dict[str, float]] = {}
        for name in ("made", "found"):
            ours = Ours(shape, scratch / "tasks-plan", tokenizer, cache=scratch / "cache")
            _, wall, cpu = clocks(lambda ours=ours: ours.evaluator.prepare(ours.documents, model=model))  # type: ignore[misc]
            row[name] = {"wall_seconds": wall, "cpu_seconds": cpu}
        found[shape.name] = row
        seconds = ", ".join(f"{name} {row[name]['cpu_seconds']:.1f} s of CPU time" for name in row)
        print(f"{shape.name}: {shape.documents} documents, {seconds}", flush=True)
    return found


class Run:
    """What was measured, kept after every task; a run that was cut short goes on if nothing else has changed."""

    def __init__(self, name: str, threads: int, *, keep: bool) -> None:
        self._name, self._keep = name, keep
        self._part = RESULTS / f"{name}.part.json"
        self.found: dict[str, Any] = {"threads": threads}
        if keep and self._part.exists():
            before = json.loads(self._part.read_text(encoding="utf-8"))
            if before.pop("machine") == machine() and before["threads"] == threads:
                self.found = before

    def save_part(self) -> None:
        """Keep what there is."""
        if self._keep:
            save(self._part.stem, self.found)

    def save(self) -> None:
        """Write the result."""
        if self._keep:
            save(self._name, self.found)
            self._part.unlink(missing_ok=True)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("demo", "large", "plan", "budget"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--task", help="only the shapes whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    demo, large = ([s for s in shapes if (options.task or "") in s.name] for shapes in (DEMO, LARGE))
    name = "evaluation_gpu" if torch.cuda.is_available() else "evaluation"
    run = Run(name, options.threads, keep=options.only is None and options.task is None)
    with tempfile.TemporaryDirectory() as folder_name:
        scratch = Path(folder_name)
        words = [*"0123456789", *"零一二三四五六七八九"]
        if options.only in (None, "demo"):
            measure_model(run, "demo", experts().base, demo, words, repeats=3, scratch=scratch)
        if options.only in (None, "large"):
            folder = write_model(scratch / "model")
            measure_model(run, "large", folder, large, made_up(31_990), repeats=2, scratch=scratch)
        if options.only in (None, "plan"):
            run.found["plan"] = measure_plan(experts().base, words, scratch=scratch)
        if options.only == "budget":
            budgets = [2**power for power in range(9, 18 if torch.cuda.is_available() else 15)]
            found: dict[str, Any] = {"threads": options.threads}
            found["demo"] = measure_budget(experts().base, words, budgets, documents=160, scratch=scratch)
            budgets, documents = (budgets, 2000) if torch.cuda.is_available() else ([256, 1024, 4096], 20)
            folder = write_model(scratch / "model")
            found["large"] = measure_budget(folder, made_up(31_990), budgets, documents=documents, scratch=scratch)
            save("evaluation_budget", found)
    run.save()


if __name__ == "__main__":
    main()
