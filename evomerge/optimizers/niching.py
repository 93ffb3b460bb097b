"""Reference directions and niches of NSGA-III (Deb and Jain 2014, IEEE TEVC 18:577). Values are maximised.

The values are shifted to the best of each objective and divided by the intercepts of the plane through the extreme
points; each point then belongs to the direction that it is nearest to.
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

from evomerge.archives import pareto
from evomerge.archives.pareto import Positions
from search_spaces.genes import Vector

OFF_AXIS = 1e6  # weight of the other objectives where the extreme point of one is looked for


class Niches(NamedTuple):
    """(points,) direction that each point belongs to, and its distance from it on the normalised scale."""

    direction: Positions
    distance: Vector


def directions(objectives: int, count: int) -> Vector:
    """Return (at most ``count``, at least ``objectives``; objectives) evenly spread directions (Das and Dennis 1998).

    They are the points of the simplex with coordinates ``k / H``, H as large as ``count`` allows.
    """
    if objectives == 1:
        return np.ones((1, 1))
    divisions = 1
    while comb(divisions + objectives, objectives - 1) <= count:
        divisions += 1
    bars = np.array(list(combinations(range(divisions + objectives - 1), objectives - 1)))
    edges = np.hstack([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), divisions + objectives - 1)])
    return np.asarray((np.diff(edges, axis=1) - 1) / divisions, dtype=np.float64)


def associate(values: Vector, fronts: Positions, rays: Vector) -> Niches:
    """Return the niches of (points, objectives) ``values`` whose ``fronts`` are those of `pareto.ranks`."""
    scaled = _normalised(values, fronts)
    unit = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    along = scaled @ unit.T
    squared = np.maximum(np.square(scaled).sum(axis=1, keepdims=True) - np.square(along), 0.0)
    direction = squared.argmin(axis=1)
    return Niches(direction, np.sqrt(squared[np.arange(len(values)), direction]))


def survivors(values: Vector, count: int, rays: Vector, rng: np.random.Generator) -> Positions:
    """Return the positions of the ``count`` rows that NSGA-III keeps: whole fronts, then the emptiest niches."""
    fronts = pareto.ranks(values)
    last = int(np.sort(fronts)[count - 1])
    kept: list[int] = np.flatnonzero(fronts < last).tolist()
    niches = associate(values, fronts, rays)
    taken = np.bincount(niches.direction[kept], minlength=len(rays)).astype(np.float64)
    waiting: dict[int, list[int]] = {}
    for row in np.flatnonzero(fronts == last)[::-1]:
        waiting.setdefault(int(niches.direction[row]), []).append(int(row))
    for rows in waiting.values():
        rows.sort(key=lambda row: -niches.distance[row])  # the nearest is taken first, from the end
    for niche in range(len(rays)):
        taken[niche] = taken[niche] if niche in waiting else np.inf
    while len(kept) < count:
        emptiest = np.flatnonzero(taken == taken.min())
        niche = int(emptiest[rng.integers(len(emptiest))])
        kept.append(waiting[niche].pop())
        taken[niche] = taken[niche] + 1.0 if waiting[niche] else np.inf
    return np.array(sorted(kept), dtype=np.intp)


def _normalised(values: Vector, fronts: Positions) -> Vector:
    """Return costs: 0 at the best of an objective, about 1 at its intercept."""
    best = values[fronts == 0]
    costs = best.max(axis=0) - values
    first = costs[fronts == 0]
    axes = np.where(np.eye(values.shape[1], dtype=bool), 1.0, OFF_AXIS)
    extremes = first[[int((first * weight).max(axis=1).argmin()) for weight in axes]]
    intercepts = _intercepts(extremes)
    worst = first.max(axis=0)
    usable = intercepts is not None and (intercepts > 1e-9).all() and (intercepts <= costs.max(axis=0) + 1e-9).all()
    scale = intercepts if usable and intercepts is not None else worst
    return np.asarray(costs / np.where(scale > 1e-12, scale, 1.0))


def _intercepts(extremes: Vector) -> Vector | None:
    """Return where the plane through the rows of ``extremes`` cuts the axes; None if there is no such plane."""
    try:
        plane = np.linalg.solve(extremes, np.ones(len(extremes)))
    except np.linalg.LinAlgError:
        return None
    with np.errstate(divide="ignore"):
        found = 1.0 / plane
    return np.asarray(found) if np.isfinite(found).all() else None
