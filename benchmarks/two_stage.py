"""Whether searching densities before weights pays in a pool of dozens of experts, most of which are useless.

Question: after the same number of evaluations, how far from the optimum are the two-stage search and CMA-ES on all
genes at once, and how large are the weights that they leave to useless experts?

Set-up: an analytic pool of 40 experts, 80 genes: a density in [0.1, 1] and a weight in [-1, 1.5] for each. Five
experts, drawn by the seed, are useful; two of them with a negative weight. The score is ``exp(-loss)``, where the loss
adds up: squared distances of ``weight * density^(1/4)`` from its target for the useful experts (the first half of what
an expert keeps matters most), 0.3 times the squared ``weight * density`` of the useless, and their mean disturbance.
Seeds 10 to 19, one worker; 300, 600 and 1,200 evaluations. Median and quartiles of the gap to the best score possible,
and the mean absolute weight of useless experts in the best point.

Run: `.venv/bin/python benchmarks/two_stage.py` (about a minute). Writes results/two_stage.json.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simulated
from common import save

from evomerge.optimizers.contract import Observation
from evomerge.optimizers.registry import Setting, make_optimizer
from evomerge.optimizers.settings import Algorithm, algorithm
from search_spaces.genes import Gene, Genes

EXPERTS, USEFUL = 40, 5
SEEDS = range(10, 20)
EVALUATIONS = (300, 600, 1200)
SEARCHES: dict[str, Algorithm] = {
    "cma_es": algorithm("cma_es"),
    "two_stage": algorithm("two_stage"),
    "two_stage, no first stage": algorithm("two_stage", first_stage=1),
    "two_stage, 20 populations": algorithm("two_stage", first_stage=280),
    "random": algorithm("random"),
}
GENES = Genes(
    tuple(
        gene
        for i in range(EXPERTS)
        for gene in (Gene(f"weight/e{i}", -1.0, 1.5, 1.0 / EXPERTS), Gene(f"density/e{i}", 0.1, 1.0, 0.55))
    )
)


def pool(seed: int) -> tuple[Any, simulated.Values]:
    """Return the score of (80,) values, and which experts are useless."""
    rng = np.random.default_rng([seed, 4])
    useful = rng.choice(EXPERTS, USEFUL, replace=False)
    target = np.zeros(EXPERTS)
    target[useful] = rng.uniform(0.5, 1.0, USEFUL) * np.where(np.arange(USEFUL) < 2, -1.0, 1.0)
    useless = np.ones(EXPERTS, dtype=bool)
    useless[useful] = False

    def score(values: simulated.Values) -> float:
        weight, density = values.reshape(EXPERTS, 2).T
        told = np.square(weight * density**0.25 - target)[useful].sum()
        disturbed = 0.3 * np.square(weight * density)[useless].sum()
        together = abs(float((weight * density)[useless].mean()))
        return float(np.exp(-told - disturbed - together))

    return score, useless


def search(settings: Algorithm, seed: int) -> list[tuple[float, float]]:
    """Return (gap, mean absolute weight of the useless) of the best point after each number of evaluations."""
    score, useless = pool(seed)
    optimizer = make_optimizer(settings.model_copy(update={"seed": seed}), Setting(GENES, np.ones(1), max(EVALUATIONS)))
    best, point, found = -1.0, np.zeros(len(GENES)), []
    for count in range(1, max(EVALUATIONS) + 1):
        genome = optimizer.ask(1)[0]
        value = score(genome.values)
        optimizer.tell([Observation(genome, np.array([value]))])
        if value > best:
            best, point = value, genome.values
        if count in EVALUATIONS:
            found.append((1.0 - best, float(np.abs(point.reshape(EXPERTS, 2)[useless, 0]).mean())))
    return found


def main() -> None:
    """Measure the searches."""
    rows = []
    for name, settings in SEARCHES.items():
        runs = np.array([search(settings, seed) for seed in SEEDS])  # (seeds, evaluations, 2)
        for evaluations, at in zip(EVALUATIONS, runs.transpose(1, 0, 2), strict=True):
            low, median, high = np.quantile(at[:, 0], [0.25, 0.5, 0.75])
            useless = float(np.median(at[:, 1]))
            print(f"{evaluations:5} evaluations  {name:25} gap {median:.3f} [{low:.3f}, {high:.3f}]  "
                  f"weight of useless experts {useless:.3f}", flush=True)  # fmt: skip
            rows.append({
                "optimizer": name, "evaluations": evaluations, "useless_weight": useless,
                "gap": {"lower_quartile": low, "median": median, "upper_quartile": high},
            })  # fmt: skip
    save("two_stage", {"experts": EXPERTS, "useful": USEFUL, "seeds": [SEEDS[0], SEEDS[-1]], "rows": rows})


if __name__ == "__main__":
    main()
