"""Natural niches on the paper's own workload: handwritten digits, a network of 19,210 weights, no gradients.

Question: does natural selection by niches merge two half-experts better than a plain genetic algorithm, its own
ablations, MAP-Elites and CMA-ES, and does it evolve the network from scratch (arXiv 2508.16204, section 4.1)?

Set-up: scikit-learn's `digits` (1,797 images of 8 x 8, pixels 0 to 16), the first 80 % to optimise, the rest to test. A
64-256-10 perceptron. `pretrained`: two half-experts (Adam 0.003, 10 full-batch epochs from N(0, 0.01^2), digits 0-4 and
5-9), no mutation, 5,000 forward passes over the optimisation images, seeds 0-9, the same two experts of a seed for
every variant. `scratch`: two networks of N(0, 0.01^2), mutation N(0, 0.01^2), 50,000 passes, fewer seeds and variants.
The optimizers are evomerge's own classes on the raw weights: archive 20, MAP-Elites 10 x 10 over the accuracy on odd
and even digits, CMA-ES with population 20 and step 0.01 from the better founder (separable, as always above 500 genes).
What is shown is the test accuracy of the member that is best on the optimisation images; coverage (share of those
images that some member solves) and entropy of the archive at the end.

Run: `.venv/bin/python benchmarks/natural_niches_digits.py [pretrained] [scratch]` (CPU: pretrained 10 minutes, scratch
15). Writes results/natural_niches_digits_SETTING.json.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from common import save
from sklearn.datasets import load_digits

from evomerge.archives.niches import coverage, entropy
from evomerge.optimizers.breeding import WeightBreeder
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.contract import Observation, Optimizer
from evomerge.optimizers.map_elites import MapElites
from evomerge.optimizers.natural_niches import NaturalNiches
from search_spaces.genes import Gene, Genes, Genome

SHAPES = ((64, 256), (256,), (256, 10), (10,))
SIZES = [int(np.prod(shape)) for shape in SHAPES]
WEIGHTS = sum(SIZES)
DEVIATION = 0.01  # of first weights and of mutations
PASSES = {"pretrained": 5_000, "scratch": 50_000}
SEEDS = {"pretrained": tuple(range(10)), "scratch": (0, 1)}
VARIANTS = {
    "pretrained": ("M2N2", "GA", "no split point", "no attraction", "MAP-Elites", "CMA-ES"),
    "scratch": ("M2N2", "GA", "no crossover", "MAP-Elites", "CMA-ES"),
}
FIRST = 3  # variants that are run for all seeds before the others
SEEDS_OF = {"CMA-ES": 2}  # of which one pass takes four times as long; all seeds of the others
PAPER = {  # read from its figures, test accuracy in per cent; pretrained at 10,000 passes
    "pretrained": {
        "M2N2": 68.3,
        "no attraction": 66.3,
        "no split point": 57.8,
        "GA": 52.0,
        "MAP-Elites": 62.4,
    },
    "scratch": {"M2N2": 87.0, "no crossover": 77.0, "GA": 68.0, "MAP-Elites": 60.0, "CMA-ES": 86.0},
}
CURVE_POINTS = 10
Array: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.int64]


class Digits(NamedTuple):
    """Images (n, 64) and labels (n,), those to optimise on sorted: odd digits first."""

    images: Array
    labels: Labels
    test_images: Array
    test_labels: Labels

    @property
    def odd(self) -> int:
        """How many of the images to optimise on show odd digits."""
        return int((self.labels % 2).sum())


def load() -> Digits:
    """Return the images, divided as the paper's code does."""
    images, labels = load_digits(return_X_y=True)
    images, cut = images.astype(np.float32), int(0.8 * len(labels))
    by_parity = np.argsort(1 - labels[:cut] % 2, kind="stable")
    return Digits(images[:cut][by_parity], labels[:cut][by_parity], images[cut:], labels[cut:])


def layers(weights: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return the network's matrices and biases as views on ``weights`` (19210,)."""
    parts = np.split(weights, np.cumsum(SIZES)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def solved(weights: npt.NDArray[Any], images: Array, labels: Labels) -> npt.NDArray[np.float64]:
    """Return (images,) 1 where the network is right, else 0: one forward pass."""
    first, bias, second, last = layers(weights.astype(np.float32))
    hidden = images @ first
    hidden += bias
    np.maximum(hidden, 0.0, out=hidden)
    return ((hidden @ second + last).argmax(axis=1) == labels).astype(np.float64)


def half_expert(data: Digits, digits: range, rng: np.random.Generator) -> Genome:
    """Train on some digits only: ten full-batch steps of Adam on cross-entropy."""
    import torch

    chosen = np.isin(data.labels, digits)
    images, labels = torch.from_numpy(data.images[chosen]), torch.from_numpy(data.labels[chosen])
    weights = torch.from_numpy(rng.normal(0.0, DEVIATION, WEIGHTS).astype(np.float32)).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.003)
    for _ in range(10):
        optimizer.zero_grad()
        parts = [p.view(shape) for p, shape in zip(weights.split(SIZES), SHAPES, strict=True)]
        logits = torch.relu(images @ parts[0] + parts[1]) @ parts[2] + parts[3]
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    return Genome(weights.detach().numpy())


def founders(setting: str, data: Digits, seed: int) -> tuple[Genome, Genome]:
    """Return the two networks that every variant of ``setting`` starts with."""
    rng = np.random.default_rng(2000 + seed)
    if setting == "scratch":
        return Genome(rng.normal(0.0, DEVIATION, WEIGHTS)), Genome(rng.normal(0.0, DEVIATION, WEIGHTS))
    return half_expert(data, range(5), rng), half_expert(data, range(5, 10), rng)


@functools.cache
def weight_genes() -> Genes:
    """Bounds far beyond any weight: CMA-ES needs some."""
    return Genes(tuple(Gene(f"w{i}", -1.0, 1.0, 0.0) for i in range(WEIGHTS)))


def make(variant: str, setting: str, start: tuple[Genome, Genome], counts: npt.NDArray[Any], seed: int) -> Optimizer:
    """Return the optimizer of one variant; ``counts``: images of each objective, so that each image counts the same."""
    breeder = WeightBreeder(
        start,
        split=variant != "no split point",
        crossover=variant != "no crossover",
        mutation=DEVIATION if setting == "scratch" else 0.0,
    )
    weights = counts.astype(np.float64)
    if variant == "MAP-Elites":
        return MapElites(breeder, weights=weights, seed=seed)
    if variant == "CMA-ES":
        return CmaEs(weight_genes(), weights=weights, seed=seed, sigma=DEVIATION / 2.0, population=20)
    plain = variant == "GA"
    attracts = not plain and variant != "no attraction"
    return NaturalNiches(breeder, weights=weights, seed=seed, alpha=0.0 if plain else 1.0, attraction=attracts)


def run(variant: str, setting: str, data: Digits, start: tuple[Genome, Genome], seed: int) -> dict[str, Any]:
    """Search once; return accuracies, coverage, entropy and CPU seconds."""
    optimizer = make(variant, setting, start, np.array([data.odd, len(data.labels) - data.odd]), seed)
    best, curve, began = (-1.0, start[0]), [], time.process_time()
    passes = PASSES[setting]
    for step in range(passes):
        seeding = step < len(start)
        genome = start[step] if seeding else optimizer.ask(1)[0]
        right = solved(genome.values, data.images, data.labels)
        parts = (right[: data.odd], right[data.odd :])
        values = np.array([part.mean() for part in parts])
        optimizer.tell([Observation(genome, values, seed=seeding, documents=parts)])
        if right.mean() > best[0]:
            best = (float(right.mean()), genome)
        if (step + 1) % (passes // CURVE_POINTS) == 0:
            curve.append(accuracy(best[1], data))
    found = {"test": accuracy(best[1], data), "optimised": best[0], "curve": curve}
    if isinstance(optimizer, NaturalNiches):
        scores = optimizer.archive.scores
        found |= {"coverage": coverage(scores), "entropy": entropy(scores)}
    return found | {"cpu_seconds": round(time.process_time() - began, 1)}


def accuracy(genome: Genome, data: Digits) -> float:
    """Return the share of test images that the network gets right."""
    return float(solved(genome.values, data.test_images, data.test_labels).mean())


def summary(found: dict[str, list[dict[str, Any]]], setting: str) -> list[str]:
    """Return the table: mean over seeds, the paired difference to M2N2 with its standard error, the paper's number."""
    lines = [
        "| variant | seeds | test accuracy | M2N2 minus it | coverage | entropy | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = np.array([run["test"] for run in found["M2N2"]])
    for variant, runs in found.items():
        test = np.array([run["test"] for run in runs])
        both = min(len(ours), len(test))
        gap = 100.0 * (ours[:both] - test[:both])
        error = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else float("nan")
        beside = "-" if variant == "M2N2" else f"{gap.mean():+.1f} ± {error:.1f}"
        paper = PAPER[setting].get(variant, "-")
        archive = f"{mean(runs, 'coverage')} | {mean(runs, 'entropy')}"
        lines.append(f"| {variant} | {len(runs)} | {100.0 * test.mean():.1f} | {beside} | {archive} | {paper} |")
    return lines


def mean(runs: list[dict[str, Any]], key: str) -> str:
    """Return the mean over ``runs``, a dash where the variant has no such number."""
    return f"{np.mean([run[key] for run in runs]):.2f}" if key in runs[0] else "-"


def jobs(setting: str) -> list[tuple[int, str]]:
    """Return (seed, variant) in the order of what the claims need first: the first variants for every seed, then the
    others."""
    variants, seeds = VARIANTS[setting], SEEDS[setting]
    parts = (variants[:FIRST], variants[FIRST:])
    wanted = [(seed, variant) for part in parts for seed in seeds for variant in part]
    return [(seed, variant) for seed, variant in wanted if seed in seeds[: SEEDS_OF.get(variant, len(seeds))]]


def main() -> None:
    """Run the settings that the command line names, both by default; results are written after every search."""
    data = load()
    for setting in sys.argv[1:] or list(PASSES):
        start = {seed: founders(setting, data, seed) for seed in SEEDS[setting]}
        found: dict[str, list[dict[str, Any]]] = {}
        for seed, variant in jobs(setting):
            found.setdefault(variant, []).append(run(variant, setting, data, start[seed], seed))
            last = found[variant][-1]
            print(seed, variant, {key: value for key, value in last.items() if key != "curve"}, flush=True)
            seeds = {str(seed): [accuracy(genome, data) for genome in pair] for seed, pair in start.items()}
            table = summary(found, setting)
            save(
                f"natural_niches_digits_{setting}",
                {"passes": PASSES[setting], "founders": seeds, "variants": found, "table": table},
            )
        print("\n".join(table), flush=True)


if __name__ == "__main__":
    main()
