"""How good the optimizers are at equal numbers of evaluations, and what asynchronous workers cost them.

Question: after the same number of evaluations, how near to the optimum does each optimizer come, how much of the ideal
hypervolume does it miss, and how much of that is lost when 2, 8 or 64 workers of unequal speed are kept busy?

Set-up: the analytic problems of `simulated.py` with ten genes and bounds [0, 1.5], their optima drawn from the seed.
`ellipsoid` has one objective: a rotated quadratic bowl of condition 100. `two_bowls` has two: mean squared distances
to two points; the front is the line between them. Workers are simulated: their speeds are log-uniform over a factor of
10, each evaluation varies by a log-normal of 0.3 more, and whoever comes back first is told first. Two budgets:
`hundreds` (200 evaluations, all but the Gaussian process, which is not for that many) and `tens` (50 evaluations, all).
Seeds 10 to 19; median and quartiles of the gap: how far the best value stays below the optimum, and the share of the
ideal hypervolume that is missing. Less is better. CPU time of ask and tell, per evaluation, beside it.

Run: `.venv/bin/python benchmarks/optimizers.py [hundreds] [tens]`. Writes results/optimizers_BUDGET.json.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import simulated
from common import save

from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import AlgorithmKind, algorithm

SEEDS = range(10, 20)
WORKERS = (1, 2, 8, 64)
BUDGETS: dict[str, tuple[int, tuple[AlgorithmKind, ...]]] = {
    "hundreds": (200, ("random", "sobol", "cma_es", "nsga2", "tpe")),
    "tens": (50, ("random", "sobol", "cma_es", "nsga2", "tpe", "gp")),
}


def search(kind: AlgorithmKind, name: str, *, evaluations: int, workers: int, seed: int) -> tuple[float, float]:
    """Return the gap after one simulated search, and CPU seconds of ask and tell per evaluation."""
    problem = simulated.PROBLEMS[name](seed)
    setting = Setting(problem.genes, np.ones(problem.objectives), evaluations)
    optimizer = make_optimizer(algorithm(kind, seed=seed), setting)
    run = simulated.search(optimizer, problem, evaluations=evaluations, workers=workers, seed=seed)
    return problem.gap(run.values), run.cpu_seconds / evaluations


def row(kind: AlgorithmKind, name: str, *, evaluations: int, workers: int) -> dict[str, Any]:
    """One line of the result: median and quartiles over the seeds."""
    runs = [search(kind, name, evaluations=evaluations, workers=workers, seed=s) for s in SEEDS]
    low, median, high = np.quantile([gap for gap, _ in runs], [0.25, 0.5, 0.75])
    milliseconds = 1e3 * float(np.median([seconds for _, seconds in runs]))
    print(f"{name:10} {workers:3} workers  {kind:7} gap {median:.4f} [{low:.4f}, {high:.4f}]  "
          f"{milliseconds:.1f} ms an evaluation", flush=True)  # fmt: skip
    return {
        "problem": name,
        "workers": workers,
        "optimizer": kind,
        "gap": {"lower_quartile": low, "median": median, "upper_quartile": high},
        "ask_and_tell_milliseconds": milliseconds,
    }


def main(budgets: list[str]) -> None:
    """Measure every optimizer on every problem with every number of workers."""
    for budget in budgets or list(BUDGETS):
        evaluations, kinds = BUDGETS[budget]
        print(f"{budget}: {evaluations} evaluations")
        rows = [
            row(kind, name, evaluations=evaluations, workers=workers)
            for name in simulated.PROBLEMS
            for workers in WORKERS
            for kind in kinds
        ]
        save(f"optimizers_{budget}", {"evaluations": evaluations, "seeds": [SEEDS[0], SEEDS[-1]], "rows": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
