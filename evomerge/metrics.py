"""Numbers of a running search for Prometheus: counted as evaluations come back, sent on every few seconds.

Counters are those of this driver; Prometheus knows that they begin anew. Gauges hold for the whole search.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Protocol, get_args

import numpy as np

from cluster.pool import Doing
from evomerge.archives.pareto import Front, hypervolume
from evomerge.config import SearchFile
from evomerge.dispatch import Dispatcher
from evomerge.preferences import make_preference
from evomerge.records import CandidateRecord, Split
from evomerge.results import JOINT, Results
from evomerge.store import SearchRecord

ABOUT = {
    "evaluations": "new evaluations that came back, failures included",
    "answers": "candidates answered from the record",
    "failures": "evaluations that failed",
    "merge_seconds": "seconds of workers spent on merging",
    "evaluate_seconds": "seconds of workers spent on evaluating",
    "idle_seconds": "seconds of workers without a candidate",
    "documents": "documents scored",
    "tokens": "tokens that went through models",
    "candidates": "candidates of the search",
    "front_size": "candidates on the Pareto front of search documents",
    "best": "best value on search documents, more is better; joint is what the search maximises",
    "hypervolume": "volume above 0 that the front dominates, on the scales of the joint score",
    "workers": "workers by what they do",
}


class Meters(Protocol):
    """Where numbers go; `cluster.ray_metrics.Meters` is one."""

    def count(self, name: str, amount: float, about: str, **tags: str) -> None:
        """Add to a counter."""

    def gauge(self, name: str, value: float, about: str, **tags: str) -> None:
        """Set a gauge."""


class SearchMetrics:
    """Numbers of one search, from what `evaluated` is told; `send` passes them on."""

    def __init__(self, meters: Meters, record: SearchRecord, file: SearchFile, dispatcher: Dispatcher) -> None:
        self._meters, self._dispatcher, self._search = meters, dispatcher, record.name
        self._names = tuple(objective.name for objective in file.objectives)
        self._signs = np.array([objective.sign for objective in file.objectives])
        self._preference = make_preference(file.objectives, file.preference)
        self._front = Front(len(self._names))
        self._counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self._idle = 0.0
        results = Results.of(record)
        self._candidates = len(results.candidates)
        self._see(results.candidates.of_origin("seed"))
        self._see(results.front)

    def phase(self, name: str, total: int, done: int) -> None:
        """Nothing to count."""

    def evaluated(self, candidate: CandidateRecord, split: Split) -> None:
        """Take in what came back."""
        evaluation = candidate.evaluations[split]
        self._candidates = max(self._candidates, candidate.number + 1)
        if evaluation.answered_from is not None:
            self._add("answers", 1.0)
            return
        cost = evaluation.cost
        self._add("evaluations", 1.0, split=split)
        if evaluation.failure:
            self._add("failures", 1.0, split=split, kind=evaluation.failure.kind.value)
        self._add("merge_seconds", cost.merge_seconds)
        self._add("evaluate_seconds", max(0.0, cost.seconds - cost.merge_seconds))
        self._add("documents", cost.documents)
        self._add("tokens", cost.tokens)
        if split == "search":
            self._see([candidate])

    def send(self) -> None:
        """Pass everything on."""
        self._add("idle_seconds", self._dispatcher.idle_seconds - self._idle)
        self._idle = self._dispatcher.idle_seconds
        for (name, tags), amount in self._counts.items():
            self._meters.count(f"evomerge_{name}", amount, ABOUT[name], search=self._search, **dict(tags))
        self._counts.clear()
        doing = Counter(worker.doing for worker in self._dispatcher.workers())
        for kind in get_args(Doing):
            self._gauge("workers", doing[kind], doing=kind)
        self._gauge("candidates", self._candidates)
        self._gauge("front_size", len(self._front))
        if len(self._front):
            values = self._front.values
            for name, best in zip(self._names, values.max(axis=0).tolist(), strict=True):
                self._gauge("best", best, objective=name)
            self._gauge("best", max(map(self._preference.scalar, values)), objective=JOINT)
            scaled = self._preference.scaled(values)
            self._gauge("hypervolume", hypervolume(scaled, np.zeros(scaled.shape[1])))

    def _see(self, candidates: Iterable[CandidateRecord]) -> None:
        for candidate in candidates:
            values = candidate.values("search", self._names)
            if values is None:
                continue
            if candidate.origin == "seed":
                self._preference.see_seed(values * self._signs)
            self._front.add(values * self._signs)

    def _add(self, name: str, amount: float, **tags: str) -> None:
        self._counts[name, tuple(tags.items())] += amount

    def _gauge(self, name: str, value: float, **tags: str) -> None:
        self._meters.gauge(f"evomerge_{name}", value, ABOUT[name], search=self._search, **tags)
