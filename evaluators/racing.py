"""Racing: a candidate sees documents in blocks and leaves when it has next to no chance to reach the best known.

Candidates are compared with *par*, what the best known score on the same documents, by differences: so it does not
matter whether the first documents are easy. The search documents are the whole population, of which par is known in
full, and a candidate that has seen all documents has no uncertainty left. Of the mean difference over a task's N
documents, n seen with mean d and variance s^2, Student's t says

    d +- s / sqrt(n) * sqrt(1 - n / N)          (finite-population correction: Cochran 1977, eq. 2.15)

where s^2 is shrunk towards a prior worth `PRIOR_DOCUMENTS` documents (a scaled inverse chi-square: Gelman et al. 2013,
section 3.3), since eight equal differences do not mean that all the others are equal, too. The prior is the largest
variance that the range of the scores allows, so it errs on the side of going on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr  # type: ignore[import-untyped]

from evaluators.evaluation import Documents, Floats, Score
from evaluators.objective import Objective, RacingSettings

PRIOR_DOCUMENTS = 2.0
WHOLE = 0.9  # a look at so large a share of the documents saves nothing any more


@dataclass(frozen=True)
class Par:
    """What the best known score on each document of one objective.

    Attributes:
        scores: (documents,) float64, their mean, in the order of the task's documents.
        low, high: the range of their single scores.
    """

    scores: Floats
    low: float
    high: float


class Rival(NamedTuple):
    """A candidate to be reached: its number, and its (objectives,) values on all documents."""

    candidate: int
    values: Floats


@dataclass(frozen=True)
class Race:
    """What a candidate must reach.

    Attributes:
        par: by objective name, and `par_of`: the numbers of the candidates whose mean it is.
        rivals: a candidate leaves as soon as one of them is very probably better.
        criteria: (criteria, objectives) float64. A rival is better when by no row's weighted sum of the objectives
            it is worse: one row of weights for a single number, one row an objective for a front.
        settings: of the blocks, and of how small a chance ends the race.
    """

    par: Mapping[str, Par]
    par_of: tuple[int, ...]
    rivals: tuple[Rival, ...]
    criteria: Floats
    settings: RacingSettings


class Spread(NamedTuple):
    """A mean over all of a task's documents, its variance, and the degrees of freedom of that."""

    mean: float
    variance: float
    freedom: float


def blocks(documents: Documents, settings: RacingSettings) -> tuple[Documents, ...]:
    """Cut ``documents`` into blocks, in order; every task has its share in each.

    Together the first k blocks hold ``settings.first * settings.growth ** (k - 1)`` documents of the largest task.
    """
    largest = max(map(len, documents.ids.values()))
    ends, size = [0.0], float(settings.first)
    while size < WHOLE * largest:
        ends.append(size / largest)
        size *= settings.growth
    ends.append(1.0)
    return tuple(block for block in cut(documents, ends) if block.ids)


def cut(documents: Documents, ends: Sequence[float]) -> list[Documents]:
    """Cut ``documents`` in order at ``ends``, shares of every task that rise from 0 to 1; return what is in between."""
    cuts = {task: [math.ceil(end * len(ids)) for end in ends] for task, ids in documents.ids.items()}
    found = []
    for number in range(len(ends) - 1):
        part = {task: ids[cuts[task][number] : cuts[task][number + 1]] for task, ids in documents.ids.items()}
        found.append(Documents({task: ids for task, ids in part.items() if ids}))
    return found


def judge(
    race: Race, objectives: Sequence[Objective], seen: Mapping[str, Floats], *, threshold: float
) -> tuple[int, float] | None:
    """Return the rival that the candidate will hardly reach, and its chance to; None if it may reach all.

    Args:
        seen: by objective name, (n,) scores of the first n documents of its task, n >= 1.
        threshold: a smaller chance is next to none.
    """
    chances = [(chance(race, rival, objectives, seen), rival.candidate) for rival in race.rivals]
    smallest, candidate = min(chances)
    return (candidate, smallest) if smallest < threshold else None


def chance(race: Race, rival: Rival, objectives: Sequence[Objective], seen: Mapping[str, Floats]) -> float:
    """Return the probability to be better than ``rival`` by some criterion after all documents.

    Criteria are taken for independent, which overrates the chance where they go together.
    """
    worse = 1.0
    for row in race.criteria:
        weights = {o.name: w for o, w in zip(objectives, row.tolist(), strict=True) if w != 0.0}
        tasks = {o.task: [p.name for p in objectives if p.task == o.task and p.name in weights] for o in objectives}
        parts = [_of_task(race, {name: weights[name] for name in names}, seen) for names in tasks.values() if names]
        ahead = sum(part.mean for part in parts) - float(row @ rival.values)
        worse *= 1.0 - probability_positive(ahead, parts)
    return 1.0 - worse


def probability_positive(mean: float, parts: Sequence[Spread]) -> float:
    """Return the probability that a sum with this mean is above 0; its parts are independent (Welch 1947)."""
    variance = sum(part.variance for part in parts)
    if variance <= 0.0:
        return float(mean > 0.0)
    freedom = variance**2 / sum(part.variance**2 / part.freedom for part in parts)
    return float(stdtr(freedom, mean / math.sqrt(variance)))


def estimated(par: Par, seen: Floats, *, first: int = 0) -> Spread:
    """Return the mean over all documents of an objective, estimated from (n,) scores of those from ``first`` on."""
    difference = mean_difference(seen, par.scores, spread=_range(par, seen), first=first)
    return difference._replace(mean=float(par.scores.mean()) + difference.mean)


def mean_difference(own: Floats, par: Floats, *, spread: float, first: int = 0) -> Spread:
    """Estimate the mean of ``own`` minus ``par`` over all N documents.

    Args:
        own: (n,) scores of n of them from number ``first`` on, 1 <= n <= N - first.
        par: (N,).
        spread: largest difference of two scores of one model.
    """
    n = len(own)
    differences = own - par[first : first + n]
    mean = float(differences.mean())
    freedom = n - 1 + PRIOR_DOCUMENTS
    squares = float(np.square(differences - mean).sum()) + PRIOR_DOCUMENTS * spread**2 / 4.0
    return Spread(mean, squares / freedom / n * (1.0 - n / len(par)), freedom)


def estimates(pars: Mapping[str, Par], seen: Mapping[str, Floats]) -> dict[str, Score]:
    """Return by objective name what ``seen``, scores of the first documents, lets expect of all documents."""
    return {name: estimate(pars[name], own) for name, own in seen.items()}


def estimate(par: Par, seen: Floats, *, first: int = 0) -> Score:
    """Return what (n,) scores of documents from ``first`` on let expect of all, inside the range of scores so far."""
    guess = estimated(par, seen, first=first)
    low, high = min(par.low, float(seen.min())), max(par.high, float(seen.max()))
    return Score(min(max(guess.mean, low), high), math.sqrt(guess.variance), seen)


def _of_task(race: Race, weights: Mapping[str, float], seen: Mapping[str, Floats]) -> Spread:
    """The weighted sum of objectives that share their documents."""
    own = np.sum([weight * seen[name] for name, weight in weights.items()], axis=0)
    par = np.sum([weight * race.par[name].scores for name, weight in weights.items()], axis=0)
    spread = sum(abs(weight) * _range(race.par[name], seen[name]) for name, weight in weights.items())
    difference = mean_difference(own, par, spread=spread)
    return difference._replace(mean=float(par.mean()) + difference.mean)


def _range(par: Par, seen: Floats) -> float:
    return max(par.high, float(seen.max())) - min(par.low, float(seen.min()))
