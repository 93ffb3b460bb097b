"""Paths through layers: what they find, what running one costs, and what a candidate costs beside writing it.

Questions:
1. quality: with equal evaluations, do paths, or merges and paths together, beat merges alone? What are scales worth?
   The demo's experts and tasks, fewer documents, one search per space and seed. Reported: the winner's test score, and
   the best search score among what the optimizer proposed, because a winner can be a seed, which is no path.
2. overhead: a forward pass of a path beside the same stack of layers as a plain transformers model, in turns; median
   CPU time. Target: at most 3 %.
3. candidates: laying and measuring a path in a worker, for random paths; beside it the same paths written, loaded and
   measured with the same evaluator, and as the peer does it: mergekit's passthrough to disk, then
   `lm_eval.simple_evaluate`, in one warm process of its own. Three tasks, answers generated or chosen among four, 8 to
   128 documents each. CPU seconds a candidate, the first two not counted; scores are compared. Target: 10 times as many
   a minute as the peer. Needs `make mergekit-env`.

Run: `.venv/bin/python benchmarks/data_flow.py [quality|overhead|candidates ...]`. Each part saves
results/data_flow_PART.json; `quality` goes on where it stopped, or starts anew with `--fresh`. About 60 CPU minutes,
most of them `quality`.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import RESULTS, experts, save
from mergekit_path import measure_by_mergekit, search_tasks
from prefixes import shared_prefixes

import evomerge
from evaluators.context import context_length
from evaluators.evaluation import Evaluation
from evaluators.evaluator import LmEvalEvaluator
from evaluators.objective import Objective
from evaluators.tasks import TaskSuite
from evomerge import demo
from evomerge.config import SearchFile, parse
from evomerge.merging.assembly import Visit, assemble
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.resident import ResidentModel
from evomerge.problem import Problem, prepare
from evomerge.results import JOINT
from search_spaces.genes import Genome
from search_spaces.path_space import PathSpace
from search_spaces.recipe import Recipe

SEEDS, EVALUATIONS = (10, 11, 12, 13, 14), 100
FRESH = "--fresh"
ROUNDS, WARM_UP, CANDIDATES = 40, 2, 10
KINDS = {"generated": ("", "exact_match"), "chosen among four": ("_mc", "acc")}  # ending of the task, metric
DOCUMENTS = (8, 16, 48, 128)  # of each task
OURS, PEER = "by reference", "mergekit and lm-eval"
MODELS = ["expert-language", "expert-add", "expert-sort", "expert-reverse"]
MERGE = {"operator": "task_arithmetic", "layer_groups": 2}
SPACES: dict[str, tuple[dict[str, Any], str]] = {
    "parameter": ({"kind": "parameter", **MERGE}, "cma_es"),
    "joint": ({"kind": "joint", "models": [MERGE, "expert-language"]}, "cat_cma"),
    "data flow": ({"kind": "data_flow", "models": MODELS}, "cat_cma"),
    "joint, second moments": (
        {"kind": "joint", "models": [MERGE, "expert-language"], "scale_start": "second_moments"},
        "cat_cma",
    ),
    "joint, no scales": ({"kind": "joint", "models": [MERGE, "expert-language"], "scales": "none"}, "cat_cma"),
    "data flow, no scales": ({"kind": "data_flow", "models": MODELS, "scales": "none"}, "cat_cma"),
    "hybrid": ({"kind": "hybrid", "merge": MERGE, "models": ["expert-language"]}, "cat_cma"),
}


def search_file(
    folder: Path, space: dict[str, Any], kind: str, seed: int, *, tasks: str = "generated", documents: int = 48
) -> SearchFile:
    """Return the demo's search with another space, and other tasks of the same questions."""
    value: dict[str, Any] = demo.search_file(experts(), folder, budget=EVALUATIONS, seed=seed)
    ending, metric = KINDS[tasks]
    value["objectives"] = [{"task": each["task"] + ending, "metric": metric} for each in value["objectives"]]
    value |= {
        "space": space,
        "optimizer": {"kind": kind, "seed": seed},
        "cluster": {"backend": "in_process", "workers": 1},
        "baselines": {"single_coefficient": 0, "random_search": False},
    }
    value["evaluation"] |= {"search_documents": documents, "validation_documents": 64, "test_documents": 192}
    value["budget"] |= {"finalists": 4}
    return parse(value, folder=folder, where="benchmark")


def quality() -> None:
    """Search every space with every seed that is not there yet."""
    file = RESULTS / "data_flow_quality.json"
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SPACES}
    if file.exists() and FRESH not in sys.argv:
        rows |= json.loads(file.read_text(encoding="utf-8"))["spaces"]
    for seed in SEEDS:
        for name, (space, kind) in SPACES.items():
            if any(row["seed"] == seed for row in rows[name]):
                continue
            with tempfile.TemporaryDirectory() as folder:
                started = time.process_time()
                results = evomerge.run(search_file(Path(folder), space, kind, seed))
                assert results.winner is not None
                own = [c for c in results.candidates if c.origin == "optimizer"]
                best = max(results.chooser.number(c, "search") for c in own)
                rows[name].append(
                    {
                        "seed": seed,
                        "winner": results.winner.label,
                        "winner_is_a_seed": results.winner.origin == "seed",
                        "winner_test": results.estimate(results.winner, "test")[JOINT].value,
                        "best_search_of_optimizer": best,
                        "shared_prefixes": shared_prefixes(results),
                        "cpu_seconds": time.process_time() - started,
                    }
                )
                print(name, rows[name][-1], flush=True)
                save("data_flow_quality", {"evaluations": EVALUATIONS, "seeds": list(SEEDS), "spaces": rows})


def overhead() -> None:
    """Time forward passes of paths and of plain models of the same depth, in turns."""
    table = {}
    for name, shape in {
        "demo (64 wide)": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6},
        "256 wide": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8},
    }.items():
        config = transformers.LlamaConfig(vocab_size=256, num_attention_heads=8, **shape)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        layers = config.num_hidden_layers
        order = [layer for layer in range(layers) for _ in range(1 + layer % 2)]
        plain_config = copy.deepcopy(config)
        plain_config.num_hidden_layers = len(order)
        plain = transformers.AutoModelForCausalLM.from_config(plain_config).eval()
        paths = {
            "plain": plain,
            "path": assemble(model, [Visit(model, layer, 1.0) for layer in order]),
            "path with a scale at every hop": assemble(model, [Visit(model, layer, 1.01) for layer in order]),
        }
        ids = torch.randint(256, (32, 24))
        seconds: dict[str, list[float]] = {key: [] for key in paths}
        for _ in range(ROUNDS):
            for key, each in paths.items():
                started = time.process_time()
                with torch.inference_mode():
                    each(input_ids=ids, use_cache=False)
                seconds[key].append(time.process_time() - started)
        medians = {key: float(np.median(values)) for key, values in seconds.items()}
        table[name] = {"cpu_ms": {k: 1e3 * v for k, v in medians.items()}} | {
            f"overhead of {key}": medians[key] / medians["plain"] - 1.0 for key in paths if key != "plain"
        }
        print(name, table[name], flush=True)
        save("data_flow_overhead", {"rounds": ROUNDS, "tokens": 32 * 24, "models": table})


def random_recipes(space: PathSpace) -> list[Recipe]:
    """Return random paths of the space."""
    generator = np.random.default_rng(0)
    count = WARM_UP + CANDIDATES
    return [space.decode(Genome(space.genes.from_unit(generator.random(len(space.genes))))) for _ in range(count)]


def candidates() -> None:
    """Measure random paths by reference, as checkpoints with the same evaluator, and as the peer does."""
    rows = []
    for kind in KINDS:
        for documents in DOCUMENTS:
            with tempfile.TemporaryDirectory() as folder:
                rows.append({"tasks": kind, **candidates_of(kind, documents, Path(folder))})
            print(rows[-1], flush=True)
            save("data_flow_candidates", {"candidates": CANDIDATES, "rows": rows})


def candidates_of(kind: str, documents: int, folder: Path) -> dict[str, Any]:
    """Return CPU seconds of each way for so many documents a task, and how far their scores are apart."""
    problem = prepare(search_file(folder, *SPACES["data flow"], seed=0, tasks=kind, documents=documents))
    assert isinstance(problem.space, PathSpace)
    recipes = random_recipes(problem.space)
    rows, scores = in_worker(problem, recipes, folder)
    names = [objective.task for objective in problem.file.objectives if isinstance(objective, Objective)]
    tasks = search_tasks(
        Path(problem.file.evaluation.include_path[0]), problem.splits.search.ids, folder / "search-tasks"
    )
    peer = measure_by_mergekit(recipes, tasks=tasks, names=names, folder=folder, warm_up=WARM_UP)
    seconds = {way: {k: float(np.mean([r[k] for r in each[WARM_UP:]])) for k in each[0]} for way, each in rows.items()}
    seconds[PEER] = {"make": peer["parts"]["merge"], "whole": peer["cpu_seconds"]}
    scores[PEER] = [[each[name] for name in names] for each in peer["scores"]]
    return {
        "documents": problem.splits.search.count,
        "cpu_seconds": seconds,
        "times_by_reference": {way: {k: each[k] / seconds[OURS][k] for k in each} for way, each in seconds.items()},
        "largest_difference_of_scores": {
            way: float(np.abs(np.subtract(each, scores[OURS])).max()) for way, each in scores.items()
        },
    }


def in_worker(
    problem: Problem, recipes: list[Recipe], folder: Path
) -> tuple[dict[str, list[dict[str, float]]], dict[str, list[list[float]]]]:
    """Return CPU seconds and scores of paths by reference, and of the same paths written and loaded, in turns."""
    checkpoints = [Checkpoint.open(source) for source in problem.folders]
    frame = problem.worker_spec(device="cpu", threads=1).tokenizer
    resident = ResidentModel(checkpoints, tokenizer=frame, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(problem.folders[frame])
    suite = TaskSuite.load(problem.file.objectives, problem.file.evaluation)
    length = context_length(resident.model.config, tokenizer)
    evaluator = LmEvalEvaluator(suite, tokenizer, settings=problem.file.evaluation, max_length=length)

    def written(recipe: Recipe) -> Any:
        target = folder / "candidate"
        copy.deepcopy(resident.apply(recipe, folded=True)).save_pretrained(target)
        return transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()

    makers: dict[str, Callable[[Recipe], Any]] = {OURS: resident.apply, "written and loaded": written}
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in makers}
    scores: dict[str, list[list[float]]] = {kind: [] for kind in makers}
    for recipe in recipes:
        for kind, make in makers.items():
            started = time.process_time()
            model = make(recipe)
            made = time.process_time() - started
            outcome = evaluator.evaluate(model, problem.splits.search)
            assert isinstance(outcome, Evaluation), outcome
            rows[kind].append({"make": made, "whole": time.process_time() - started})
            scores[kind].append([outcome.scores[name].value for name in problem.objective_names])
    return rows, scores


PARTS = {"overhead": overhead, "candidates": candidates, "quality": quality}

if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for part in [argument for argument in sys.argv[1:] if argument != FRESH] or PARTS:
        PARTS[part]()
