"""Analytic problems, and asynchronous workers of unequal speed that answer them without anybody sleeping."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evomerge.archives.pareto import hypervolume
from evomerge.optimizers.contract import Observation, Optimizer
from search_spaces.genes import Gene, Genes, Genome

Values = npt.NDArray[np.float64]
LOW, HIGH = 0.0, 1.5
SPEEDS = 10.0  # the slowest worker takes so many times as long as the fastest
JITTER = 0.3  # standard deviation of the logarithm of one evaluation's time around its worker's


def genes(count: int) -> Genes:
    """Return ``count`` genes like weights: bounds [0, 1.5], started in the middle."""
    return Genes(tuple(Gene(f"g{i}", LOW, HIGH, (LOW + HIGH) / 2) for i in range(count)))


@dataclass(frozen=True)
class Problem:
    """A function to maximise.

    Attributes:
        function: (genes,) to (objectives,) values.
        documents: (genes,) to what plays the part of documents: one score at least 0 for each gene, of each objective.
        gap: how far some (points, objectives) values stay below what is possible.
    """

    genes: Genes
    objectives: int
    function: Callable[[Values], Values]
    documents: Callable[[Values], tuple[Values, ...]]
    gap: Callable[[Values], float]


def ellipsoid(seed: int, dimensions: int = 10) -> Problem:
    """A rotated quadratic bowl of condition 100; its optimum is 0."""
    rng = np.random.default_rng([seed, 1])
    target = rng.uniform(0.2, 1.3, dimensions)
    rotation = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))[0]
    stretch = np.logspace(0, 2, dimensions)

    def terms(x: Values) -> Values:
        return stretch * np.square(rotation @ (x - target))

    return Problem(
        genes=genes(dimensions),
        objectives=1,
        function=lambda x: np.array([-float(terms(x).sum())]),
        documents=lambda x: (1.0 / (1.0 + terms(x)),),
        gap=lambda values: -float(values.max()),
    )


def two_bowls(seed: int, dimensions: int = 10) -> Problem:
    """Mean squared distances to two points; each is the other's reference."""
    one, other = np.random.default_rng([seed, 2]).uniform(0.2, 1.3, (2, dimensions))

    def function(x: Values) -> Values:
        return np.array([-np.square(x - one).mean(), -np.square(x - other).mean()])

    reference = np.array([function(other)[0], function(one)[1]])
    front = np.array([function(one + share * (other - one)) for share in np.linspace(0.0, 1.0, 2001)])
    ideal = hypervolume(front, reference)
    return Problem(
        genes=genes(dimensions),
        objectives=2,
        function=function,
        documents=lambda x: (HIGH**2 - np.square(x - one), HIGH**2 - np.square(x - other)),
        gap=lambda values: 1.0 - hypervolume(values, reference) / ideal,
    )


PROBLEMS = {"ellipsoid": ellipsoid, "two_bowls": two_bowls}


@dataclass(frozen=True)
class Run:
    """One simulated search.

    Attributes:
        values: (evaluations, objectives) in the order in which they came back.
        makespan: simulated time, in units of the fastest worker's evaluation.
        idle: share of the workers' simulated time, until the last evaluation began, in which they had nothing to do.
        cpu_seconds: of ask and tell together.
    """

    values: Values
    makespan: float
    idle: float
    cpu_seconds: float


def observe(optimizer: Optimizer, problem: Problem, genome: Genome, values: Values) -> Observation:
    """Return what ``optimizer`` is told of a point: its values, and its documents if it lives on them."""
    documents = problem.documents(genome.values) if getattr(optimizer, "needs_documents", False) else None
    return Observation(genome, values, documents=documents)


def search(
    optimizer: Optimizer, problem: Problem, *, evaluations: int, workers: int, seed: int, barrier: bool = False
) -> Run:
    """Search with ``workers`` whose speeds are log-uniform over a factor of `SPEEDS`.

    Whoever comes back first is told first, and gets the next point at once; with ``barrier`` nobody gets one before all
    have come back.
    """
    rng = np.random.default_rng([seed, 3])
    slowness = SPEEDS ** rng.uniform(0.0, 1.0, workers)
    running: list[tuple[float, int, int, Genome]] = []  # (end, number, worker, genome)
    free_since = dict.fromkeys(range(workers), 0.0)
    found: list[Values] = []
    asked, now, spent, idle, last_start = 0, 0.0, 0.0, 0.0, 0.0
    while len(found) < evaluations:
        started = time.process_time()
        while free_since and asked < evaluations and not (barrier and asked % workers == 0 and running):
            worker = next(iter(free_since))
            idle += now - free_since.pop(worker)
            genome = optimizer.ask(1)[0]
            heapq.heappush(running, (now + slowness[worker] * rng.lognormal(0.0, JITTER), asked, worker, genome))
            asked, last_start = asked + 1, now
        spent += time.process_time() - started
        now, _, worker, genome = heapq.heappop(running)
        found.append(problem.function(genome.values))
        started = time.process_time()
        optimizer.tell([observe(optimizer, problem, genome, found[-1])])
        spent += time.process_time() - started
        free_since[worker] = now
    return Run(np.array(found), now, idle / max(workers * last_start, 1e-9), spent)
