"""From the events of a run to the curves that loggers draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from evomerge.config import SearchFile
from evomerge.loggers.background import Background
from evomerge.loggers.contract import LoggedSearch, RunLogger
from evomerge.loggers.settings import AnyLogger, check_installed
from evomerge.records import CandidateRecord, EvaluationRecord, Split
from evomerge.results import Results
from evomerge.storage_url import masked
from evomerge.store import SearchRecord
from evomerge.watcher import Watcher
from search_spaces.canonical import digest
from search_spaces.genes import Vector


@contextmanager
def logged(watcher: Watcher, loggers: Iterable[AnyLogger]) -> Iterator[Watcher]:
    """Yield a watcher that tells ``watcher`` and ``loggers``.

    Raises:
        BadSearch: the library of a logger is not installed.
    """
    settings = tuple(loggers)
    if not settings:
        yield watcher
        return
    for each in settings:
        check_installed(each)
    told = LoggedWatcher(watcher, [Background(each.kind, each.make) for each in settings])
    try:
        yield told
    finally:
        told.close()


class LoggedWatcher:
    """Passes every event on, and turns those about candidates into points of curves.

    Search documents: ``search/OBJECTIVE``, ``best/OBJECTIVE`` so far, both also for ``joint`` where there are several,
    failures, seconds and documents of a candidate. Other documents: ``SPLIT/OBJECTIVE``.
    """

    def __init__(self, watcher: Watcher, loggers: Iterable[Background]) -> None:
        self._watcher = watcher
        self._loggers = list(loggers)
        self._curves: _Curves | None = None

    def say(self, what: str) -> None:
        """Pass it on."""
        self._watcher.say(what)

    def search_begins(self, record: SearchRecord, file: SearchFile) -> None:
        """End the curves of the search before, begin those of this one."""
        self._watcher.search_begins(record, file)
        self._end()
        results = Results.of(record)
        self._curves = _Curves(results)
        value = file.model_dump(mode="json") | {"storage": masked(file.storage)}
        key = digest([record.name, record.row.created])[:32]
        self._tell(partial(_begin, search=LoggedSearch(record.name, key, results.spent, value)))

    def phase(self, name: str, total: int, done: int) -> None:
        """Pass it on."""
        self._watcher.phase(name, total, done)

    def evaluated(self, candidate: CandidateRecord, split: Split) -> None:
        """Add what this candidate gave."""
        self._watcher.evaluated(candidate, split)
        assert self._curves is not None
        evaluation = candidate.evaluations[split]
        if evaluation.answered_from is None:
            values = self._curves.add(evaluation, seed=candidate.origin == "seed")
            self._tell(partial(_log, step=self._curves.step, values=values))

    def close(self) -> None:
        """End the curves and wait for the loggers, for a bounded time."""
        self._end()
        for logger in self._loggers:
            logger.close()
        self._say_faults()

    def _end(self) -> None:
        if self._curves is not None:
            self._tell(lambda logger: logger.end())
            self._curves = None

    def _tell(self, call: Any) -> None:
        for logger in self._loggers:
            logger.call(call)
        self._say_faults()

    def _say_faults(self) -> None:
        for logger in [each for each in self._loggers if each.fault is not None]:
            self._watcher.say(f"logging to {logger.name} has ended: {logger.fault}; the search goes on")
            self._loggers.remove(logger)


def _begin(logger: RunLogger, search: LoggedSearch) -> None:
    logger.begin(search)


def _log(logger: RunLogger, step: int, values: Mapping[str, float]) -> None:
    logger.log(step, values)


class _Curves:
    """The points of one search; the best so far is that of all its runs."""

    def __init__(self, results: Results) -> None:
        self.step = results.spent
        self._names = results.chooser.names
        self._signs = results.signs
        self._preference = results.chooser.preference  # its scales follow from the seeds
        self._failed = sum(results.failures.values())
        known = results.candidates.values["search"][results.searched] * self._signs
        self._best = np.vstack([np.full((1, len(self._names)), -np.inf), known]).max(axis=0)
        self._best_together: Vector | None = max(known, key=self._joint, default=None)  # values with the best joint

    def _joint(self, values: Vector) -> float:
        """The weighted mean of maximised (objectives,) ``values`` on the scales that the seeds so far give."""
        weights = self._preference.weights
        return float(self._preference.scaled(values) @ weights / weights.sum())

    def add(self, evaluation: EvaluationRecord, *, seed: bool) -> dict[str, float]:
        """Return what an evaluation, of a ``seed`` or of another, adds, by name."""
        split = evaluation.split
        self.step += split == "search"
        self._failed += evaluation.failure is not None
        values = {"failures": float(self._failed)}
        values |= {"cost/seconds": evaluation.cost.seconds, "cost/merge_seconds": evaluation.cost.merge_seconds}
        values["cost/documents"] = float(evaluation.cost.documents)
        scores = evaluation.values(self._names)
        if scores is None or evaluation.stopped:
            return values
        values |= {f"{split}/{name}": value for name, value in zip(self._names, scores.tolist(), strict=True)}
        turned, several = scores * self._signs, len(self._names) > 1
        if split == "search":
            self._take(turned, seed=seed)
            best = zip(self._names, (self._best * self._signs).tolist(), strict=True)
            values |= {f"best/{name}": value for name, value in best}
        if several:
            values[f"{split}/joint"] = self._joint(turned)
        if several and split == "search" and self._best_together is not None:
            values["best/joint"] = self._joint(self._best_together)
        return values

    def _take(self, values: Vector, *, seed: bool) -> None:
        if seed:
            self._preference.see_seed(values)
        self._best = np.maximum(self._best, values)
        if self._best_together is None or self._joint(values) > self._joint(self._best_together):
            self._best_together = values
