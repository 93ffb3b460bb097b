"""What other objectives cost beside a metric of the same task: CPU time of a candidate, side by side in one run.

Set-up: the demo's experts and one task that generates, 64 documents, one thread; every variant has its own worker,
and the variants take turns on the same recipes. Ratios of medians to the metric alone.

    python benchmarks/objectives.py
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from common import experts, save
from pydantic import TypeAdapter

from evaluators.evaluation import Evaluation
from evaluators.objective import EvaluationSettings
from evaluators.objective_kinds import AnyObjective
from evomerge.worker import Worker, WorkerSpec
from search_spaces.operators import TaskArithmetic
from search_spaces.recipe import Block, Blocks, Recipe, Source

TASK, DOCUMENTS, ROUNDS = "rev_j", 64, 12
METRIC = {"task": TASK, "metric": "exact_match"}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "metric": [METRIC],
    "metric, length, cost": [METRIC, {"kind": "length", "task": TASK}, {"kind": "cost", "task": TASK}],
    "likelihood alone": [{"kind": "likelihood", "task": TASK}],
    "metric, likelihood": [METRIC, {"kind": "likelihood", "task": TASK}],
    "metric, distance": [METRIC, {"kind": "distance"}],
    "metric, forgetting": [METRIC, {"kind": "forgetting", "task": TASK, "metric": "exact_match"}],
}


def make_worker(foundry: Any, values: list[dict[str, Any]]) -> Worker:
    """A worker of one variant."""
    adapter: TypeAdapter[AnyObjective] = TypeAdapter(AnyObjective)
    folders = tuple(map(str, (foundry.base, *foundry.experts.values())))
    settings = EvaluationSettings(include_path=(str(foundry.tasks),))
    objectives = tuple(adapter.validate_python(value) for value in values)
    return WorkerSpec(folders, 0, "float32", objectives, settings)()


def cpu_seconds(worker: Worker, recipe: Recipe) -> float:
    """CPU time of one candidate."""
    start = time.process_time()
    outcome = worker.evaluate(recipe.to_json(), {TASK: tuple(range(DOCUMENTS))})
    assert isinstance(outcome, Evaluation), outcome
    return time.process_time() - start


def recipe(foundry: Any, number: int) -> Recipe:
    """A different merge for each number."""
    weights = tuple(0.2 + 0.03 * ((number + i) % 12) for i in range(len(foundry.experts)))
    sources = tuple(Source(path=str(folder)) for folder in (foundry.base, *foundry.experts.values()))
    block = Block(layers=(0, 1 << 10), operator=TaskArithmetic(weights=weights))
    return Recipe(sources=sources, dtype="float32", body=Blocks(blocks=(block,)))


def main() -> None:
    """Measure all variants in turns."""
    foundry = experts()
    workers = {name: make_worker(foundry, values) for name, values in VARIANTS.items()}
    for worker in workers.values():
        cpu_seconds(worker, recipe(foundry, 0))  # plans, and the base of what is relative to it
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(ROUNDS):
        for name, worker in workers.items():
            times[name].append(cpu_seconds(worker, recipe(foundry, number)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {name: {"cpu_ms": 1e3 * m, "ratio": m / medians["metric"]} for name, m in medians.items()}
    for name, values in result.items():
        print(f"{name:24} {values['cpu_ms']:7.1f} ms  {values['ratio']:.2f}")
    save("objectives", {"task": TASK, "documents": DOCUMENTS, "rounds": ROUNDS, "variants": result})


if __name__ == "__main__":
    main()
