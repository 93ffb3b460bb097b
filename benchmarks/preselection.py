"""What CMA-ES gains by correlated groups and by preselection, on many more seeds than real searches allow.

Question: on merges, how much better is the recipe that CMA-ES shows after so many evaluations when the genes of one
expert begin correlated, and when a Gaussian process chooses which of the points that it draws are evaluated?

Set-up: five searches of the demo are recorded once, 96 documents a task, on experts that no comparison uses (the
foundry's seed 1; those of the published table were recorded before preselection, one of them with a first step of 0.2).
A small network is fitted to the scores (`racing_replay.py`), a landscape of the chance to solve each document, given
the 24 genes. A search of the replay draws 64 documents a task, and whether a candidate solves one by a threshold
half of it the document's own. It begins with nine seeds; `shown` is the expected score on the other
documents of the candidate with the best search score, `best` that of the best there is. Seeds 0 to 29, the same
documents for every arm; differences are to the first arm, with their standard error.

A landscape that is a network is smoother than a real one may be: real searches decide (`search_quality.py`).

Run: `.venv/bin/python benchmarks/preselection.py [--table FILE]` (a minute of CPU; four more to record the table unless
FILE is there, and as many to train the experts). Writes results/preselection.json.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import save
from racing_replay import HIGH, PART, TASKS, Landscape, landscape_of

from evaluators.evaluation import Floats
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.contract import Observation
from search_spaces.genes import Gene, Genes, Genome

RECORDED = (("cma_es", 100, 280), ("random", 103, 120), ("cma_es", 101, 200), ("tpe", 104, 150), ("cma_es", 102, 200))
DOCUMENTS = 96
EXPERTS, GROUPS = 4, 6
SEEDS = range(30)
CHECKPOINTS = (50, 75, 100, 150)
ARMS: dict[str, dict[str, Any]] = {
    "neither": {},
    "correlation 0.3": {"correlation": 0.3},
    "preselection": {"preselect": 20},
    "both": {"preselect": 20, "correlation": 0.3},
    "both, correlation 0.5": {"preselect": 20, "correlation": 0.5},
    "both, population 13": {"preselect": 20, "correlation": 0.3, "population": 13},
}


class World:
    """The documents of one seed: which are searched on, and what they ask of a candidate."""

    def __init__(self, landscape: Landscape, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self._landscape, self._seed = landscape, seed
        self._order = np.stack([rng.permutation(DOCUMENTS) for _ in range(TASKS)])
        self._thresholds = rng.random((TASKS, PART))

    def look(self, genome: Genome) -> tuple[Floats, float]:
        """Return (tasks,) search scores, and the expected score on the other documents."""
        rng = np.random.default_rng([self._seed, *np.frombuffer(genome.to_bytes(), np.uint32).tolist()])
        chances = np.take_along_axis(self._landscape(genome.values), self._order, axis=1)
        searched = chances[:, :PART]
        own = rng.random(searched.shape) < 0.5
        thresholds = np.where(own, rng.random(searched.shape), self._thresholds)
        return (searched > thresholds).mean(axis=1), float(chances[:, PART:].mean())


def genes() -> Genes:
    """Return the demo's genes: a weight for each expert in each group of layers."""
    names = [f"weight/expert-{e}/layers-{group}-{group}" for group in range(GROUPS) for e in range(EXPERTS)]
    return Genes(tuple(Gene(name, 0.0, HIGH, 0.5) for name in names))


def given() -> list[Genome]:
    """Return the seeds that the space can express: base, experts, uniform average, two coefficients for all."""
    rows = [np.zeros(EXPERTS), *np.eye(EXPERTS), *(np.full(EXPERTS, c) for c in (1.0 / EXPERTS, 0.4, 0.5))]
    return [Genome(np.tile(row, GROUPS)) for row in rows]


def search(arm: dict[str, Any], world: World, seed: int) -> list[tuple[float, float]]:
    """Return what is shown and what is the best at each checkpoint."""
    optimizer, seeds = CmaEs(genes(), weights=np.ones(TASKS), seed=seed, **arm), given()
    shown, best, rows = (-1.0, 0.0), 0.0, []
    for counted in range(1, CHECKPOINTS[-1] + 1):
        is_seed = counted <= len(seeds)
        if counted != len(seeds) + 1:  # where the ninth seed stands, which the space cannot express
            genome = seeds[counted - 1] if is_seed else optimizer.ask(1)[0]
            values, true = world.look(genome)
            optimizer.tell([Observation(genome, values, seed=is_seed)])
            shown, best = max(shown, (float(values.mean()), true), key=lambda pair: pair[0]), max(best, true)
        if counted in CHECKPOINTS:
            rows.append((shown[1], best))
    return rows


def main() -> None:
    """Replay all arms, printing each."""
    landscape, _, fit = landscape_of(1, RECORDED, DOCUMENTS)
    found: dict[str, Any] = {}
    first = None
    for name, arm in ARMS.items():
        runs = np.array([search(arm, World(landscape, seed), seed) for seed in SEEDS])
        first = runs if first is None else first
        differences = runs[:, :, 0] - first[:, :, 0]
        found[name] = {
            "shown": runs[:, :, 0].mean(axis=0).tolist(),
            "best": runs[:, :, 1].mean(axis=0).tolist(),
            "difference": differences.mean(axis=0).tolist(),
            "standard_error": (differences.std(axis=0, ddof=1) / len(SEEDS) ** 0.5).tolist(),
        }
        print(name, {key: np.round(values, 3).tolist() for key, values in found[name].items()}, flush=True)
        save("preselection", {"checkpoints": CHECKPOINTS, "searches": len(SEEDS), "landscape": fit, "arms": found})


if __name__ == "__main__":
    main()
