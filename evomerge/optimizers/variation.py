"""Real-coded crossover and mutation inside bounds. A gene that neither touches keeps its value to the last bit.

SBX (simulated binary crossover): Deb and Agrawal 1995; with bounds: Deb, Pratap, Agarwal and Meyarivan 2002.
Polynomial mutation: Deb and Goyal 1996. Both draw from densities that end at the bounds: nothing is clipped, so
no probability piles up there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from search_spaces.genes import Genes, Vector

CLOSE = 1e-14  # parents' genes nearer than this share of the range are taken for equal
CROSSOVER_ETA = 5.0  # the usual 15 was mostly worse at small budgets; see docs/optimizers.md
CROSSOVER_PROBABILITY = 0.9
MUTATION_ETA = 20.0


@dataclass(frozen=True)
class Box:
    """Bounds: (dim,) float64 each, ``low < high``."""

    low: Vector
    high: Vector


def crossover(
    first: Vector,
    second: Vector,
    box: Box,
    rng: np.random.Generator,
    *,
    eta: float = CROSSOVER_ETA,
    probability: float = CROSSOVER_PROBABILITY,
) -> Vector:
    """Return one child of each pair by bounded SBX.

    ``child = (x1 + x2 -/+ beta (x2 - x1)) / 2`` for a gene with parents' values ``x1 < x2``, where
    ``beta = (u alpha)^(1/(eta+1))`` if ``u <= 1/alpha``, else ``(1/(2 - u alpha))^(1/(eta+1))``;
    ``alpha = 2 - (1 + 2 d/(x2 - x1))^-(eta+1)`` and d is the room between the child's side and its bound.

    Args:
        first, second: (..., dim) float64 inside ``box``, one pair of parents a row.
        eta: the larger, the nearer children stay to their parents.
        probability: of crossing a pair at all; a crossed pair crosses every other gene.

    Returns:
        (..., dim) float64 inside ``box``; a gene that is not crossed comes from ``first``.
    """
    crossed = rng.random(first.shape) < 0.5
    uniform, upper_side = rng.random(first.shape), rng.random(first.shape) < 0.5
    crossed &= rng.random(first.shape[:-1] + (1,)) < probability
    low, high = np.minimum(first, second), np.maximum(first, second)
    crossed &= high - low > CLOSE * (box.high - box.low)
    gap = np.where(crossed, high - low, 1.0)
    room = np.where(upper_side, box.high - high, low - box.low)
    alpha = 2.0 - (1.0 + 2.0 * room / gap) ** -(eta + 1.0)
    scaled = uniform * alpha
    inner = scaled <= 1.0
    beta = np.where(inner, scaled, 1.0 / (2.0 - np.where(inner, 0.0, scaled))) ** (1.0 / (eta + 1.0))
    child = 0.5 * (low + high + np.where(upper_side, beta, -beta) * gap)
    return np.where(crossed, np.clip(child, box.low, box.high), first)  # the clip removes rounding only


def mutate(
    point: Vector,
    box: Box,
    rng: np.random.Generator,
    *,
    eta: float = MUTATION_ETA,
    probability: float | None = None,
) -> Vector:
    """Return ``point`` after polynomial mutation.

    ``x + delta`` for x scaled to [0, 1], with ``delta = (2u + (1 - 2u) (1 - x)^(eta+1))^(1/(eta+1)) - 1`` if
    ``u < 1/2``, else ``1 - (2(1 - u) + 2(u - 1/2) x^(eta+1))^(1/(eta+1))``.

    Args:
        point: (..., dim) float64 inside ``box``.
        eta: the larger, the smaller the steps.
        probability: of each gene; 1/dim by default.

    Returns:
        (..., dim) float64 inside ``box``.
    """
    mutated = rng.random(point.shape) < (1.0 / point.shape[-1] if probability is None else probability)
    uniform = rng.random(point.shape)
    span, power = box.high - box.low, eta + 1.0
    unit = (point - box.low) / span
    down = (2.0 * uniform + (1.0 - 2.0 * uniform) * (1.0 - unit) ** power) ** (1.0 / power) - 1.0
    up = 1.0 - (2.0 * (1.0 - uniform) + (2.0 * uniform - 1.0) * unit**power) ** (1.0 / power)
    moved = point + np.where(uniform < 0.5, down, up) * span
    return np.where(mutated, np.clip(moved, box.low, box.high), point)


def child(first: Vector, second: Vector, genes: Genes, rng: np.random.Generator) -> Vector:
    """Return a child of two parents by crossover and mutation, (dim,) float64 inside the bounds of ``genes``.

    Integer genes cross as real ones do and are rounded to the nearest; mutated ones move by one at least. Categorical
    genes come from either parent; mutated ones are drawn anew.
    """
    box = Box(genes.low, genes.high)
    crossed = crossover(first, second, box, rng)
    mutated = mutate(crossed, box, rng)
    return _whole(first, second, mutated, genes, rng) if genes.whole.any() else mutated


def _whole(first: Vector, second: Vector, crossed: Vector, genes: Genes, rng: np.random.Generator) -> Vector:
    dim = len(genes)
    mutates = rng.random(dim) < 1.0 / dim
    rounded = genes.nearest(crossed)
    step = np.where(rng.random(dim) < 0.5, -1.0, 1.0)
    stepped = genes.nearest(np.where(mutates & (rounded == first), rounded + step, rounded))
    drawn = genes.from_unit(rng.random(dim))
    inherited = np.where(mutates, drawn, np.where(rng.random(dim) < 0.5, first, second))
    return np.where(genes.categorical, inherited, stepped)
