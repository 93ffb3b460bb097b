"""What workers of unequal speed cost and gain: quality at equal evaluations, and time, against runs with a barrier.

Question: with 2, 8 and 64 workers that never wait for one another, how much worse is what a search has found after the
same number of evaluations than with one worker, who always knows everything - and how much sooner is it done than with
a barrier after every round?

Set-up: the analytic problems of `simulated.py`, ten genes, 500 evaluations (TPE 100), seeds 10 to 19. Speeds are
log-uniform over a factor of 10. Three runs each: `synchronous` (one worker), `asynchronous`, `barrier` (all workers
wait for the slowest, then everything is told). `map_elites` is left out: without seeds its
grid has no scale. The gap is the distance to the optimum (`ellipsoid`) or the missing
share of the ideal hypervolume (`two_bowls`); the loss is the ratio of gaps, seed by seed, to the synchronous run: 1 is
no loss. `idle` is the share of the workers' time without work before the last evaluation began.

Run: `.venv/bin/python benchmarks/asynchrony.py` (about a quarter of an hour). Writes results/asynchrony.json.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simulated
from common import save

from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import AlgorithmKind, algorithm

SEEDS = range(10, 20)
WORKERS = (2, 8, 64)
KINDS: tuple[AlgorithmKind, ...] = (
    "cma_es", "cat_cma", "nsga2", "nsga3", "natural_niches", "cycle_qd", "tpe",
)  # fmt: skip
FEWER: dict[AlgorithmKind, int] = {"tpe": 100}  # evaluations; an ask of TPE takes long
EVALUATIONS = 500
FRONTS_ONLY = ("cycle_qd",)


def search(kind: AlgorithmKind, name: str, seed: int, workers: int, *, barrier: bool = False) -> tuple[float, Any]:
    """Return the gap and the run of one simulated search."""
    problem = simulated.PROBLEMS[name](seed)
    evaluations = FEWER.get(kind, EVALUATIONS)
    setting = Setting(problem.genes, np.ones(problem.objectives), evaluations)
    optimizer = make_optimizer(algorithm(kind, seed=seed), setting)
    run = simulated.search(optimizer, problem, evaluations=evaluations, workers=workers, seed=seed, barrier=barrier)
    return problem.gap(run.values), run


def quartiles(values: list[float]) -> dict[str, float]:
    """Lower quartile, median, upper quartile."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"lower_quartile": low, "median": median, "upper_quartile": high}


def rows_of(kind: AlgorithmKind, name: str) -> list[dict[str, Any]]:
    """One optimizer on one problem with every number of workers."""
    alone = [search(kind, name, seed, 1)[0] for seed in SEEDS]
    rows = []
    for workers in WORKERS:
        free = [search(kind, name, seed, workers) for seed in SEEDS]
        held = [search(kind, name, seed, workers, barrier=True) for seed in SEEDS]
        row = {
            "problem": name,
            "optimizer": kind,
            "evaluations": FEWER.get(kind, EVALUATIONS),
            "workers": workers,
            "gap_synchronous": quartiles(alone),
            "gap": quartiles([gap for gap, _ in free]),
            "loss": quartiles([gap / one for (gap, _), one in zip(free, alone, strict=True)]),
            "loss_with_barrier": quartiles([gap / one for (gap, _), one in zip(held, alone, strict=True)]),
            "idle": max(run.idle for _, run in free),
            "idle_with_barrier": float(np.median([run.idle for _, run in held])),
            "barrier_takes_times": float(
                np.median([slow.makespan / fast.makespan for (_, slow), (_, fast) in zip(held, free, strict=True)])
            ),
        }
        loss = row["loss"]
        print(f"{name:10} {kind:14} {workers:3} workers  gap {row['gap']['median']:.4g}  loss {loss['median']:.2f} "
              f"[{loss['lower_quartile']:.2f}, {loss['upper_quartile']:.2f}]  idle {row['idle']:.3f}  "
              f"barrier: loss {row['loss_with_barrier']['median']:.2f}, {row['barrier_takes_times']:.1f} times as long",
              flush=True)  # fmt: skip
        rows.append(row)
    return rows


def main() -> None:
    """Measure every optimizer on both problems."""
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for name in ("two_bowls",) if kind in FRONTS_ONLY else tuple(simulated.PROBLEMS):
            rows += rows_of(kind, name)
            save("asynchrony", {"seeds": [SEEDS[0], SEEDS[-1]], "rows": rows})


if __name__ == "__main__":
    main()
