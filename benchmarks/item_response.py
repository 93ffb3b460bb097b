"""Would item-response theory choose better documents for racing than the common random order with par does?

Question: how well do n documents of each task predict a candidate's joint score on all of them? Three predictors, on
the recorded score table of a full search (tests/data): par (what racing uses: differences to the mean of the eight best
on the same documents), and the two-parameter logistic model (2PL: Birnbaum 1968), fitted by marginal maximum likelihood
(Bock and Aitkin 1981) to all candidates evaluated so far, with random documents and with those most informative at the
best candidate's ability. `z` is the root mean square of error over claimed standard error: above 1 is overconfident.

Run: `.venv/bin/python benchmarks/item_response.py` (half a minute). Writes results/item_response.json.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from common import ROOT, save

Floats = npt.NDArray[np.float64]

ABILITIES = np.linspace(-4.0, 4.0, 41)
PRIOR = np.exp(-(ABILITIES**2) / 2) / np.exp(-(ABILITIES**2) / 2).sum()
CALIBRATED_ON = (50, 100, 200)
SEEN = (8, 16, 32)
CANDIDATES = 250
REPEATS = 10
BEST = 8


def logistic(logits: Floats) -> Floats:
    """Return chances inside (0, 1)."""
    return np.clip(1.0 / (1.0 + np.exp(-logits)), 1e-6, 1.0 - 1e-6)


def chances(items: tuple[Floats, Floats]) -> Floats:
    """Return (abilities, documents) chances to solve."""
    slopes, intercepts = items
    return logistic(np.outer(ABILITIES, slopes) + intercepts)


def posterior(solved: Floats, items: tuple[Floats, Floats]) -> Floats:
    """Return (candidates, abilities) from (candidates, documents) responses."""
    p = chances(items)
    logs = solved @ np.log(p).T + (1.0 - solved) @ np.log(1.0 - p).T + np.log(PRIOR)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def fit(solved: Floats, *, rounds: int = 25) -> tuple[Floats, Floats]:
    """Return slopes (prior: normal around 1, deviation 1/2) and intercepts (around 0, deviation 3) of a 2PL."""
    rate = np.clip(solved.mean(axis=0), 0.02, 0.98)
    slopes, intercepts = np.ones(len(rate)), np.log(rate / (1.0 - rate))
    for _ in range(rounds):
        weights = posterior(solved, (slopes, intercepts))
        there, right = weights.sum(axis=0)[:, None], weights.T @ solved
        for _ in range(3):  # Newton
            p = chances((slopes, intercepts))
            error, curve = right - there * p, there * p * (1.0 - p)
            by_slope = ABILITIES @ error - (slopes - 1.0) / 0.25
            by_intercept = error.sum(axis=0) - intercepts / 9.0
            a, b, c = ABILITIES**2 @ curve + 4.0, ABILITIES @ curve, curve.sum(axis=0) + 1.0 / 9.0
            step = np.array([c * by_slope - b * by_intercept, a * by_intercept - b * by_slope]) / (a * c - b * b)
            slopes = np.clip(slopes + np.clip(step[0], -0.5, 0.5), 0.05, 4.0)
            intercepts = intercepts + np.clip(step[1], -1.0, 1.0)
    return slopes, intercepts


def informative(items: tuple[Floats, Floats], best: Floats) -> npt.NDArray[np.intp]:
    """Return the documents, the most informative at the ability behind (documents,) responses ``best`` first."""
    slopes, intercepts = items
    ability = float((posterior(best[None], items) @ ABILITIES)[0])
    p = logistic(slopes * ability + intercepts)
    return np.argsort(-(slopes**2) * p * (1.0 - p), kind="stable")


def predicted(own: Floats, items: tuple[Floats, Floats], order: npt.NDArray[np.intp], n: int) -> tuple[Floats, Floats]:
    """Return (candidates,) means over all documents and their variances, from the first n documents of ``order``."""
    first, rest = order[:n], order[n:]
    slopes, intercepts = items
    ability = posterior(own[:, first], (slopes[first], intercepts[first]))
    p = chances((slopes[rest], intercepts[rest]))
    solved = p.sum(axis=1)
    mean = ability @ solved
    variance = ability @ solved**2 - mean**2 + ability @ (p * (1.0 - p)).sum(axis=1)
    count = own.shape[1]
    return (own[:, first].sum(axis=1) + mean) / count, variance / count**2


def errors(table: Floats, calibrated_on: int, n: int) -> dict[str, tuple[Floats, Floats]]:
    """Return by predictor (candidates,) errors of the joint score and claimed standard errors (nan for par)."""
    tasks, count = table.shape[1:]
    known, fresh = table[:calibrated_on], table[calibrated_on : calibrated_on + CANDIDATES]
    joint, truth = known.mean(axis=(1, 2)), fresh.mean(axis=(1, 2))
    par = known[np.argsort(-joint, kind="stable")[:BEST]].mean(axis=0)
    guess = par.mean() + (fresh[:, :, :n] - par[:, :n]).mean(axis=(1, 2))
    found = {"par": (guess - truth, np.full(len(truth), np.nan))}
    items = [fit(known[:, task]) for task in range(tasks)]
    best = known[int(np.argmax(joint))]
    orders = {
        "2PL, random": [np.arange(count)] * tasks,
        "2PL, informative": [informative(items[task], best[task]) for task in range(tasks)],
    }
    for name, order in orders.items():
        parts = [predicted(fresh[:, task], items[task], order[task], n) for task in range(tasks)]
        mean = np.mean([part[0] for part in parts], axis=0)
        found[name] = (mean - truth, np.sqrt(np.sum([part[1] for part in parts], axis=0)) / tasks)
    return found


def main() -> None:
    """Compare on the recorded table with its documents shuffled."""
    file = np.load(ROOT / "tests" / "data" / "demo_scores.npz")
    shape = tuple(file["shape"])
    table = np.unpackbits(file["bits"], count=int(np.prod(shape))).reshape(shape).astype(np.float64)
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for calibrated_on in CALIBRATED_ON:
        for n in SEEN:
            found: dict[str, list[tuple[Floats, Floats]]] = {}
            for _ in range(REPEATS):
                order = generator.permuted(np.tile(np.arange(shape[2]), (shape[1], 1)), axis=1)
                for name, pair in errors(np.take_along_axis(table, order[None], axis=2), calibrated_on, n).items():
                    found.setdefault(name, []).append(pair)
            for name, pairs in found.items():
                error, claimed = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
                row = {"calibrated_on": calibrated_on, "documents": n, "predictor": name}
                row["error"] = float(np.sqrt(np.square(error).mean()))
                row["z"] = None if name == "par" else float(np.sqrt(np.square(error / claimed).mean()))
                rows.append(row)
                z = "" if row["z"] is None else f", z {row['z']:.2f}"
                print(f"{calibrated_on} candidates known, {n} documents, {name}: error {row['error']:.4f}{z}")
    save("item_response", {"table": list(map(int, shape)), "rows": rows})


if __name__ == "__main__":
    main()
