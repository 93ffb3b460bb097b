"""How good the optimizers are at equal numbers of evaluations, and what asynchronous workers cost them.

Question: after the same number of evaluations, how near to the optimum does each optimizer come, how much of the ideal
hypervolume does it miss, and how much of that is lost when 2, 8 or 64 workers of unequal speed are kept busy?

Set-up: analytic problems of ten genes with bounds [0, 1.5], their optima drawn from the seed. `ellipsoid` has one
objective: a rotated quadratic bowl of condition 100. `two_bowls` has two: mean squared distances to two points; the
front is the line between them. Workers are simulated with an event queue: worker i takes 2^u_i times as long as others
(u_i uniform in [-1, 1]), each evaluation varies by a log-normal of 0.3 more, and whoever comes back first is told
first. Nobody sleeps. Two budgets: `hundreds` (200 evaluations, all but the Gaussian process, which is not for that
many) and `tens` (50 evaluations, all). Seeds 10 to 19; median and quartiles of the gap: how far the best value stays
below the optimum, and the share of the ideal hypervolume that is missing. Less is better. CPU time of ask and tell,
per evaluation, beside it.

Run: `.venv/bin/python benchmarks/optimizers.py [hundreds] [tens]`. Writes results/optimizers_BUDGET.json.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from common import save

from evomerge.archives.pareto import hypervolume
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import AlgorithmKind, algorithm
from search_spaces.genes import Gene, Genes, Genome

Values = npt.NDArray[np.float64]
GENES = Genes(tuple(Gene(f"g{i}", 0.0, 1.5, 0.75) for i in range(10)))
SEEDS = range(10, 20)
WORKERS = (1, 2, 8, 64)
BUDGETS: dict[str, tuple[int, tuple[AlgorithmKind, ...]]] = {
    "hundreds": (200, ("random", "sobol", "cma_es", "nsga2", "tpe")),
    "tens": (50, ("random", "sobol", "cma_es", "nsga2", "tpe", "gp")),
}


@dataclass(frozen=True)
class Problem:
    """A function to maximise, and how far some (points, objectives) values stay below what is possible."""

    objectives: int
    function: Callable[[Values], Values]
    gap: Callable[[Values], float]


def ellipsoid(seed: int) -> Problem:
    """A rotated quadratic bowl of condition 100; its optimum is 0."""
    rng = np.random.default_rng([seed, 1])
    target = rng.uniform(0.2, 1.3, len(GENES))
    rotation = np.linalg.qr(rng.standard_normal((len(GENES), len(GENES))))[0]
    stretch = np.logspace(0, 2, len(GENES))
    return Problem(
        objectives=1,
        function=lambda x: np.array([-float(stretch @ np.square(rotation @ (x - target)))]),
        gap=lambda values: -float(values.max()),
    )


def two_bowls(seed: int) -> Problem:
    """Mean squared distances to two points; each is the other's reference."""
    one, other = np.random.default_rng([seed, 2]).uniform(0.2, 1.3, (2, len(GENES)))

    def function(x: Values) -> Values:
        return np.array([-np.square(x - one).mean(), -np.square(x - other).mean()])

    reference = np.array([function(other)[0], function(one)[1]])
    front = np.array([function(one + share * (other - one)) for share in np.linspace(0.0, 1.0, 2001)])
    ideal = hypervolume(front, reference)
    return Problem(objectives=2, function=function, gap=lambda values: 1.0 - hypervolume(values, reference) / ideal)


PROBLEMS = {"ellipsoid": ellipsoid, "two_bowls": two_bowls}


def search(kind: AlgorithmKind, problem: Problem, *, evaluations: int, workers: int, seed: int) -> tuple[float, float]:
    """Return the gap after one simulated search, and CPU seconds of ask and tell per evaluation."""
    setting = Setting(GENES, np.ones(problem.objectives), evaluations)
    optimizer = make_optimizer(algorithm(kind, seed=seed), setting)
    rng = np.random.default_rng([seed, 3])
    slowness = 2.0 ** rng.uniform(-1.0, 1.0, workers)
    running: list[tuple[float, int, int, Genome]] = []  # (end, number, worker, genome)
    found: list[Values] = []
    free, asked, now, spent = list(range(workers)), 0, 0.0, 0.0
    while len(found) < evaluations:
        started = time.process_time()
        while free and asked < evaluations:
            worker, genome = free.pop(0), optimizer.ask(1)[0]
            heapq.heappush(running, (now + slowness[worker] * rng.lognormal(0.0, 0.3), asked, worker, genome))
            asked += 1
        spent += time.process_time() - started
        now, _, worker, genome = heapq.heappop(running)
        found.append(problem.function(genome.values))
        started = time.process_time()
        optimizer.tell([Observation(genome, found[-1])])
        spent += time.process_time() - started
        free.append(worker)
    return problem.gap(np.array(found)), spent / evaluations


def row(kind: AlgorithmKind, name: str, *, evaluations: int, workers: int) -> dict[str, Any]:
    """One line of the result: median and quartiles over the seeds."""
    runs = [search(kind, PROBLEMS[name](s), evaluations=evaluations, workers=workers, seed=s) for s in SEEDS]
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
            for name in PROBLEMS
            for workers in WORKERS
            for kind in kinds
        ]
        save(f"optimizers_{budget}", {"evaluations": evaluations, "seeds": [SEEDS[0], SEEDS[-1]], "rows": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
