"""How much of a front MAP's surrogates find with few evaluations, beside NSGA-II, NSGA-III, random and Sobol points.

Question: at equal budgets, which share of the ideal hypervolume does each optimizer's delivered front have? With a
design of p points (p coefficients for N genes) and 2p evaluations in all, is MAP's median at least random search's at
4p?

Set-up `bells`: N tasks and N genes in [0, 1.2] (2, 3, 4), each task a bell around a point near its own expert, as wide
as its precision matrix says (`wide`, and `narrow` with twice the precision), measured with normal noise of 0.015. The
delivered front is what is not dominated by measured values; it is judged by its true values. Hypervolume from the
origin, relative to the front that NSGA-III finds on the truth with many evaluations. Seeds 10 to 29; medians and
quartiles after p, 2p, 3p and 4p evaluations. MAP was tuned on seeds 0 to 9.

Set-up `foundry`: the tiny experts, one weight for each of the four (p = 15), the three joint skills as objectives,
64 search documents each; the delivered front is judged on 192 other documents. Hypervolume from the origin, absolute.
Seeds 10 to 12.

One evaluation at a time. NSGA-II and NSGA-III have 10 members, since 30 would leave them their first sample only.

Run: `.venv/bin/python benchmarks/map_pareto.py [bells] [foundry]`. Writes results/map_pareto_SETUP.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import experts, save

from evomerge.archives.pareto import front, hypervolume
from evomerge.optimizers.contract import Observation, Optimizer
from evomerge.optimizers.niching import directions, survivors
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import AlgorithmKind, algorithm
from evomerge.optimizers.surrogate import coefficients
from evomerge.optimizers.variation import Box, crossover, mutate
from search_spaces.genes import Gene, Genes, Genome

Values = npt.NDArray[np.float64]
Measure = Callable[[Genome], tuple[Values, Values]]  # what the optimizer is told, and what it is judged by
KINDS: tuple[AlgorithmKind, ...] = ("map", "nsga2", "nsga3", "random", "sobol")
WIDTHS = {"wide": 0.5, "narrow": 1.0}  # factor on the precision
HIGH, NOISE = 1.2, 0.015
MULTIPLES = (1, 2, 3, 4)
BELL_SEEDS, FOUNDRY_SEEDS = range(10, 30), range(10, 13)
SEARCHED, JUDGED = 64, 192  # documents of each task


class Bells:
    """As many smooth tasks as experts; see the module's text."""

    def __init__(self, tasks: int, seed: int, factor: float) -> None:
        rng = np.random.default_rng([seed, tasks, 7])
        own = np.eye(tasks, dtype=bool)
        self.tasks = tasks
        self.optima = np.where(own, rng.uniform(0.75, 1.1, own.shape), rng.uniform(0.0, 0.35, own.shape))
        self.low, self.high = rng.uniform(0.05, 0.3, tasks), rng.uniform(0.6, 0.9, tasks)
        tilts = 0.3 * rng.standard_normal((tasks, tasks, tasks))
        scales = np.where(own, rng.uniform(1.0, 2.0, own.shape), rng.uniform(0.8, 3.0, own.shape))
        self.precisions = [factor * (a @ a.T + np.diag(d)) for a, d in zip(tilts, scales, strict=True)]

    def truth(self, points: Values) -> Values:
        """(points, tasks) true scores of (points, genes)."""
        steps = [points - optimum for optimum in self.optima]
        pairs = zip(steps, self.precisions, strict=True)
        bells = np.exp([-np.einsum("ij,jk,ik->i", step, precision, step) for step, precision in pairs])
        return np.asarray(self.low + (self.high - self.low) * bells.T)

    def ideal(self, seed: int) -> float:
        """Hypervolume of the best front that NSGA-III finds on the truth itself."""
        rng, box = np.random.default_rng(seed), Box(np.zeros(self.tasks), np.full(self.tasks, HIGH))
        sample = rng.random((20_000, self.tasks)) * HIGH
        found = sample[front(self.truth(sample))]
        members = np.vstack([found, sample])[:200]
        rays = directions(self.tasks, 200)
        for _ in range(60):
            first, second = members[rng.integers(200, size=(2, 200))]
            everyone = np.vstack([members, mutate(crossover(first, second, box, rng), box, rng)])
            members = everyone[survivors(self.truth(everyone), 200, rays, rng)]
        return volume(self.truth(np.vstack([found, members])))


def volume(values: Values) -> float:
    """Hypervolume from the origin."""
    return hypervolume(values[front(values)], np.zeros(values.shape[1]))


def make(kind: AlgorithmKind, genes: Genes, objectives: int, seed: int) -> Optimizer:
    """Return an optimizer with the settings of this comparison."""
    count = coefficients(len(genes))
    extra: dict[str, Any] = {"map": {"design": count}, "nsga2": {"population": 10}, "nsga3": {"population": 10}}
    settings = algorithm(kind, seed=seed, **extra.get(kind, {}))
    return make_optimizer(settings, Setting(genes, np.ones(objectives), max(MULTIPLES) * count))


def curve(kind: AlgorithmKind, genes: Genes, objectives: int, measure: Measure, seed: int) -> list[float]:
    """Return the hypervolume of the delivered front after p, 2p, 3p and 4p evaluations."""
    optimizer, count = make(kind, genes, objectives, seed), coefficients(len(genes))
    told, judged, found = [], [], []
    for _ in range(max(MULTIPLES) * count):
        genome = optimizer.ask(1)[0]
        measured, true = measure(genome)
        optimizer.tell([Observation(genome, measured)])
        told.append(measured)
        judged.append(true)
        if len(told) in [multiple * count for multiple in MULTIPLES]:
            found.append(volume(np.array(judged)[front(np.array(told))]))
    return found


def genes_of(names: list[str]) -> Genes:
    """One weight for each name."""
    return Genes(tuple(Gene(name, 0.0, HIGH, HIGH / 2) for name in names))


def summary(label: str, kind: str, curves: list[list[float]]) -> dict[str, Any]:
    """Print and return medians and quartiles over the seeds."""
    low, median, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0).round(4).tolist()
    parts = [f"{m}p {b:.3f} [{a:.3f}, {c:.3f}]" for m, a, b, c in zip(MULTIPLES, low, median, high, strict=True)]
    print(f"{label:18} {kind:7} {'  '.join(parts)}", flush=True)
    quartiles = {"lower_quartile": low, "median": median, "upper_quartile": high}
    return {"problem": label, "optimizer": kind, "multiples_of_p": list(MULTIPLES), "hypervolume": quartiles}


def bells() -> dict[str, Any]:
    """The synthetic comparison."""
    rows, targets = [], {}
    for width, factor in WIDTHS.items():
        for tasks in (2, 3, 4):
            genes = genes_of([f"expert {i}" for i in range(tasks)])
            label = f"{tasks} tasks, {width}"
            problems = {seed: Bells(tasks, seed, factor) for seed in BELL_SEEDS}
            ideal = {seed: problem.ideal(seed) for seed, problem in problems.items()}
            for kind in KINDS:
                curves = [
                    [v / ideal[s] for v in curve(kind, genes, tasks, noisy(problem, s), s)]
                    for s, problem in problems.items()
                ]
                rows.append(summary(label, kind, curves))
            medians = {row["optimizer"]: row["hypervolume"]["median"] for row in rows if row["problem"] == label}
            targets[label] = {"map at 2p": medians["map"][1], "random at 4p": medians["random"][3]}
            print(f"{label:18} {targets[label]}", flush=True)
    return {"seeds": [BELL_SEEDS[0], BELL_SEEDS[-1]], "targets": targets, "rows": rows}


def noisy(problem: Bells, seed: int) -> Measure:
    """Measure a problem with noise; the same for every optimizer of a seed as far as they agree."""
    rng = np.random.default_rng([seed, 5])

    def measure(genome: Genome) -> tuple[Values, Values]:
        true = problem.truth(genome.values[None])[0]
        return np.clip(true + NOISE * rng.standard_normal(len(true)), 0.0, 1.0), true

    return measure


def foundry() -> dict[str, Any]:
    """The comparison on the tiny experts."""
    from evomerge.config import parse
    from evomerge.demo import search_file
    from evomerge.problem import prepare

    value = search_file(experts(0), Path(), budget=max(MULTIPLES) * coefficients(4), seed=0)
    value["space"] = {"kind": "parameter", "operator": "task_arithmetic", "weight": [0.0, HIGH]}
    documents = {"search_documents": SEARCHED, "validation_documents": JUDGED, "test_documents": 1}
    value["evaluation"] = {**dict(value["evaluation"]), **documents}  # type: ignore[call-overload]
    problem = prepare(parse(value, folder=Path.cwd(), where="benchmark"))
    worker = problem.worker_spec(device="cpu", threads=1)()

    def measure(genome: Genome) -> tuple[Values, Values]:
        recipe = problem.space.decode(genome).to_json()
        splits = (problem.splits.search, problem.splits.validation)
        outcomes = [worker.evaluate(recipe, split.ids) for split in splits]
        pair = [np.array([o.scores[name].value for name in problem.objective_names]) for o in outcomes]  # type: ignore[union-attr]
        return pair[0], pair[1]

    genes, objectives = problem.space.genes, len(problem.objective_names)
    rows = [
        summary("foundry", kind, [curve(kind, genes, objectives, measure, seed) for seed in FOUNDRY_SEEDS])
        for kind in KINDS
    ]
    return {"seeds": [FOUNDRY_SEEDS[0], FOUNDRY_SEEDS[-1]], "objectives": list(problem.objective_names), "rows": rows}


def main(names: list[str]) -> None:
    """Run the set-ups that are named, all by default."""
    setups = {"bells": bells, "foundry": foundry}
    for name in names or setups:
        save(f"map_pareto_{name}", setups[name]())


if __name__ == "__main__":
    main(sys.argv[1:])
