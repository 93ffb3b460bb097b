"""Minibatches of search documents: which one a candidate sees, and what its scores there let expect of all documents.

The search documents are cut into equal parts, and the points of one generation of the optimizer see one part, those of
the next generation the next. Within a generation all are compared on common documents, and over the generations the
search sees all documents, so it does not fit itself to few of them. Now and then the middle of the optimizer's
distribution is measured on all documents, which takes a quarter of them, however many minibatches there are: where
noise decides which point of a generation looks best, the middle, which is the average of many choices, is better than
the best-looking points (Beyer and Sendhoff 2007). These full measurements are what the front, the finalists and the
figures are made of.

What is recorded of the others is an estimate: the mean of the best known (`best_known.py`) on all documents, plus the
difference to it on the minibatch. So asynchronous workers may mix points of two generations.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from evaluators.evaluation import Documents, Evaluation, Floats, Outcome, Score, Stop
from evaluators.objective import MinibatchSettings, Objective
from evaluators.racing import Par, cut, estimate, estimated
from evomerge.best_known import BestKnown
from evomerge.dispatch import Task
from evomerge.errors import BadSearch
from evomerge.optimizers.contract import HasGenerations, Observation, Optimizer
from evomerge.records import CandidateRecord

PER_MIDDLE = 3  # times the search documents that points see for one middle, which sees them all once
REHEARSED = 300  # points of an optimizer, of which `check` counts those that see all documents


def with_generations(optimizer: Optimizer, kind: str) -> HasGenerations:
    """Return ``optimizer``, of this ``kind``.

    Raises:
        BadSearch: it compares points of all times, which saw different documents.
    """
    if not isinstance(optimizer, HasGenerations):
        raise BadSearch(
            f"evaluation.minibatches: optimizer {kind} compares candidates of all times, so all must see the same "
            "documents; use cma_es, or evaluation.racing"
        )
    return optimizer


def refuse_few_documents(documents: Documents, count: int) -> None:
    """Refuse search documents that are too few for ``count`` minibatches.

    Raises:
        BadSearch: a task has less than two for each.
    """
    fewest = min(documents.ids, key=lambda task: len(documents.ids[task]))
    if len(documents.ids[fewest]) < 2 * count:
        raise BadSearch(
            f"evaluation.minibatches: {count} minibatches need {2 * count} search documents of each task, "
            f"{fewest} has {len(documents.ids[fewest])}; use fewer minibatches or more documents"
        )


def minibatches(documents: Documents, settings: MinibatchSettings) -> list[Documents]:
    """Return ``documents``, all of the search, cut into the parts that generations see."""
    return cut(documents, [number / settings.count for number in range(settings.count + 1)])


def points_between_middles(settings: MinibatchSettings) -> int:
    """Return after how many points on minibatches the middle of the distribution is measured on all documents."""
    return PER_MIDDLE * settings.count


def share_in_full(optimizer: Optimizer, kind: str, *, objectives: int, points: int) -> float:
    """Return which share of an optimizer's points is measured on all documents: a rehearsal with random values.

    Args:
        optimizer: a new one of this ``kind``; the rehearsal uses it up.
        points: that it will be asked for; at most `REHEARSED` of them are rehearsed.

    Raises:
        BadSearch: it has no generations.
    """
    generations, rng = with_generations(optimizer, kind), np.random.default_rng(0)
    full, rehearsed = 0, max(1, min(points, REHEARSED))
    for _ in range(rehearsed):
        genome = optimizer.ask(1)[0]
        full += generations.generation_of(genome) is None
        optimizer.tell([Observation(genome, rng.random(objectives))])
    return full / rehearsed


class Minibatches:
    """See the module's text."""

    def __init__(
        self,
        documents: Documents,
        settings: MinibatchSettings,
        objectives: tuple[Objective, ...],
        optimizer: HasGenerations,
        best: BestKnown,
    ) -> None:
        """Cut ``documents``, all of the search, into parts; ``best`` is kept up to date by the search."""
        self._parts = minibatches(documents, settings)
        self._smooth = settings.measure != "metric"
        self._all, self._objectives, self._optimizer, self._best = documents, objectives, optimizer, best

    def task(self, candidate: CandidateRecord) -> Task:
        """Return what is to be measured of ``candidate``; all while nothing is known to hold an estimate to."""
        number = self._number(candidate)
        if number is None or not len(self._best):
            return Task(candidate, "search", self._all)
        return Task(candidate, "search", self._parts[number], smooth=self._smooth)

    def estimated(self, task: Task, outcome: Outcome) -> Outcome:
        """Return what ``outcome`` on the documents of ``task`` lets expect of all documents."""
        seen = task.documents
        if seen is self._all or not isinstance(outcome, Evaluation):
            return outcome
        par_of, par = self._best.par()
        scores = {}
        for objective in self._objectives:
            first = self._all.ids[objective.task].index(seen.ids[objective.task][0])
            own = outcome.scores[objective.name].documents
            scores[objective.name] = self._estimate(par[objective.name], own, first)
        number = self._parts.index(seen)
        stop = Stop(seen.count, self._all.count, rival=None, chance=None, par=par_of, minibatch=number)
        return replace(outcome, scores=scores, stopped=stop)

    def _estimate(self, par: Par, own: Floats, first: int) -> Score:
        """What scores of documents from ``first`` on let expect; of smooth ones, whose level is another than that of
        par, only the order counts, so they are not held to its range."""
        if not self._smooth:
            return estimate(par, own, first=first)
        guess = estimated(par, own, first=first)
        return Score(guess.mean, math.sqrt(guess.variance), own)

    def _number(self, candidate: CandidateRecord) -> int | None:
        """Of the minibatch; None for what is measured on all documents."""
        if candidate.origin == "seed" or candidate.genome is None:
            return None
        generation = self._optimizer.generation_of(candidate.genome)
        return None if generation is None else generation % len(self._parts)
