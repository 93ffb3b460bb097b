"""The loop: ask, dispatch, collect, record, tell.

There is no generation barrier. A candidate is recorded before it is dispatched, and its evaluation is committed
before the optimizer is told, so a kill between any two steps loses nothing: `Search` starts by replaying the
record, and dispatches again what was not finished.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from evaluators.evaluation import Evaluation, Failure, Outcome, Score
from evomerge.best_known import BestKnown
from evomerge.dispatch import Dispatcher, Task
from evomerge.errors import BadSearch
from evomerge.minibatches import Minibatches, with_generations
from evomerge.optimizers.contract import Observation, Optimizer
from evomerge.optimizers.preference import WeightedMean
from evomerge.problem import Problem
from evomerge.racing import Referee, refuse_unraceable
from evomerge.records import CandidateRecord, EvaluationRecord, Origin, Split
from evomerge.stopping import Stopping
from evomerge.store import SearchRecord
from search_spaces.genes import Genome, Vector
from search_spaces.recipe import Recipe
from search_spaces.seeds import seeds

POLL_SECONDS = 1.0
FEWEST_FOR_FAILURE_BUDGET = 20


class Listener(Protocol):
    """Who is told of progress."""

    def phase(self, name: str, total: int, done: int) -> None:
        """A phase begins: ``total`` evaluations, ``done`` of them recorded already."""

    def evaluated(self, candidate: CandidateRecord, split: Split) -> None:
        """A candidate came back."""


@dataclass
class _Progress:
    """What the record says about where the search stands."""

    sequence: int = 0  # next number for an ask or a tell
    failed: int = 0


class Search:
    """One driver's run of one search; see the module's text. Use it while holding the search's lock."""

    def __init__(
        self,
        problem: Problem,
        record: SearchRecord,
        optimizer: Optimizer,
        dispatcher: Dispatcher,
        listener: Listener,
    ) -> None:
        self.problem = problem
        self.record = record
        self._optimizer = optimizer
        self._dispatcher = dispatcher
        self._listener = listener
        self._progress = _Progress()
        file, documents = problem.file, problem.splits.search.count
        self._stopping = Stopping(file.budget, file.objectives, file.preference, documents=documents)
        self._waiting: deque[CandidateRecord] = deque()
        # Recipes are the bulk of a candidate: who has been measured is kept without, and read again if need be.
        self.candidates: dict[int, CandidateRecord] = {c.number: _kept(c) for c in record.candidates()}
        self._by_recipe: dict[str, int] = {}
        self._by_genome: dict[Genome, int] = {}
        self._best = BestKnown(problem.file.metrics, record.document_scores)
        self._referee = self._make_referee()
        self._minibatches = self._make_minibatches()
        self._replay()
        self._add_seeds()

    # ---------------------------------------------------------------- the search

    def run(self) -> str:
        """Search until `Stopping` has a reason to stop; return it.

        Raises:
            BadSearch: too large a share of the evaluations failed.
        """
        budget = self.problem.file.budget
        self._listener.phase("search", budget.evaluations, self._stopping.evaluations)
        clock = _Clock(self.record)
        try:
            while True:
                reason = self._fill_workers(clock)
                if reason and self._dispatcher.in_flight == 0:
                    return reason
                for task, outcome in self._dispatcher.collect(POLL_SECONDS):
                    self._finish(task, outcome)
                clock.save()
        finally:
            clock.save(force=True)

    def _fill_workers(self, clock: _Clock) -> str | None:
        """Give every free worker a candidate; return the reason if no more may be started."""
        reason = self._stopping.reason(seconds=clock.seconds, in_flight=self._dispatcher.in_flight)
        while self._dispatcher.free > 0 and reason is None:
            self._start_next()
            reason = self._stopping.reason(seconds=clock.seconds, in_flight=self._dispatcher.in_flight)
        return reason

    def _start_next(self) -> None:
        """Dispatch one candidate, or answer it from the record."""
        candidate = self._waiting.popleft() if self._waiting else self._ask()
        equal = self._by_recipe.get(candidate.recipe_digest)
        if equal is not None and equal != candidate.number:
            self._answer(candidate, self.candidates[equal])
            return
        self._dispatcher.send(self._task(candidate))

    def _task(self, candidate: CandidateRecord) -> Task:
        if self._minibatches:
            return self._minibatches.task(candidate)
        race = self._referee.race() if self._referee and candidate.origin != "seed" else None
        return Task(candidate, "search", self.problem.splits.search, race)

    def _make_referee(self) -> Referee | None:
        settings = self.problem.file.evaluation.racing
        if settings is None:
            return None
        refuse_unraceable(self._optimizer, self.problem.file.optimizer.kind)
        weighted = isinstance(self.problem.setting().aim, WeightedMean)  # a race for any other number is for the front
        single_number = weighted and getattr(self._optimizer, "single_number", False)
        return Referee(self._best, settings, single_number=single_number)

    def _make_minibatches(self) -> Minibatches | None:
        settings, documents = self.problem.file.evaluation.minibatches, self.problem.splits.search
        if settings is None:
            return None
        optimizer = with_generations(self._optimizer, self.problem.file.optimizer.kind)
        return Minibatches(documents, settings, self.problem.file.metrics, optimizer, self._best)

    def _ask(self) -> CandidateRecord:
        genome = self._optimizer.ask(1)[0]
        recipe = self.problem.space.decode(genome)
        parents = self._parents(genome)
        return self._add(recipe, origin="optimizer", genome=genome, asked_at=self._next_in_sequence(), parents=parents)

    def _parents(self, genome: Genome) -> list[int]:
        """Numbers of the candidates that ``genome`` was made of, as far as the optimizer says so and they are known."""
        parents_of = getattr(self._optimizer, "parents_of", None)
        parents = parents_of(genome) if parents_of else ()
        return sorted({self._by_genome[parent] for parent in parents if parent in self._by_genome})

    def _answer(self, candidate: CandidateRecord, equal: CandidateRecord) -> None:
        """Give ``candidate`` the search evaluation of a candidate with the same recipe."""
        source = equal.evaluations["search"]
        self._record_and_tell(candidate, self._recorded_outcome(source), answered_from=source.id)

    def _recorded_outcome(self, evaluation: EvaluationRecord) -> Outcome:
        if evaluation.failure:
            return evaluation.failure
        scores = {
            name: Score(m.value, m.standard_error, self.record.document_scores(evaluation, name))
            for name, m in evaluation.scores.items()
        }
        ties = {name: m.tie_break for name, m in evaluation.scores.items() if m.tie_break is not None}
        return Evaluation(
            evaluation.documents_digest,
            scores,
            ties,
            truncated=evaluation.truncated,
            over_limits=evaluation.over_limits,
            stopped=evaluation.stopped,
        )

    def _finish(self, task: Task, outcome: Outcome) -> None:
        if self._minibatches:
            outcome = self._minibatches.estimated(task, outcome)
        self._progress.failed += isinstance(outcome, Failure)
        self._record_and_tell(task.candidate, outcome)
        self._check_failure_budget()

    def _record_and_tell(
        self, candidate: CandidateRecord, outcome: Outcome, *, answered_from: int | None = None
    ) -> None:
        digest = self.problem.splits.search.digest
        candidate = self.record.add_evaluation(
            candidate,
            "search",
            outcome,
            documents_digest=digest,
            told_at=self._next_in_sequence(),
            answered_from=answered_from,
        )
        self._keep(candidate)
        self._tell(candidate)
        self._listener.evaluated(candidate, "search")

    def _tell(self, candidate: CandidateRecord) -> None:
        self._stopping.add(candidate)
        self._optimizer.tell([self._observation(candidate)])

    def _observation(self, candidate: CandidateRecord) -> Observation:
        """What the optimizer learns: every objective maximised, and the weighted mean of their tie-breaks."""
        objectives = self.problem.file.objectives
        signs = np.array([objective.sign for objective in objectives])
        evaluation = candidate.evaluations["search"]
        values = evaluation.values(self.problem.objective_names)
        tie = 0.0
        if values is not None:
            measured = evaluation.scores
            pairs = [(o.weight, measured[o.name].tie_break) for o in objectives]
            known = [(weight, value) for weight, value in pairs if value is not None]
            tie = sum(w * v for w, v in known) / sum(w for w, _ in known) if known else 0.0
        return Observation(
            genome=candidate.genome,
            values=None if values is None else values * signs,
            tie_break=tie,
            seed=candidate.origin == "seed",
            estimated=evaluation.stopped is not None,
            documents=self._document_scores(candidate) if values is not None else None,
        )

    def _document_scores(self, candidate: CandidateRecord) -> tuple[Vector, ...] | None:
        """Per-document scores of every objective, more is better, if the optimizer wants them."""
        if not getattr(self._optimizer, "needs_documents", False):
            return None
        evaluation = candidate.evaluations["search"]
        return tuple(o.sign * self.record.document_scores(evaluation, o.name) for o in self.problem.file.objectives)

    def _check_failure_budget(self) -> None:
        failed, spent = self._progress.failed, self._stopping.evaluations
        share = self.problem.file.budget.failures
        if spent < FEWEST_FOR_FAILURE_BUDGET or failed <= share * spent:
            return
        failures = [c.evaluations["search"].failure for c in self.candidates.values() if c.state == "failed"]
        kinds = Counter(failure.kind.value for failure in failures if failure)
        last = next(failure for failure in reversed(failures) if failure)
        raise BadSearch(
            f"search {self.record.name!r} stopped: {failed} of {spent} evaluations failed "
            f"({', '.join(f'{kind}: {count}' for kind, count in kinds.most_common())}); the last: {last.message}. "
            f"Remove the cause and run it again (budget.failures, now {share:g}, sets the limit)"
        )

    # ---------------------------------------------------------------- the record

    def _add(
        self,
        recipe: Recipe,
        *,
        origin: Origin,
        name: str | None = None,
        genome: Genome | None = None,
        asked_at: int | None = None,
        parents: Sequence[int] = (),
    ) -> CandidateRecord:
        number = len(self.candidates)
        candidate = self.record.add_candidate(
            number, recipe, origin=origin, name=name, genome=genome, asked_at=asked_at, parents=parents
        )
        self._keep(candidate)
        return candidate

    def _keep(self, candidate: CandidateRecord) -> None:
        self.candidates[candidate.number] = _kept(candidate)
        if candidate.genome is not None:
            self._by_genome.setdefault(candidate.genome, candidate.number)
        if self._referee or self._minibatches:
            self._best.see(candidate)
        if "search" in candidate.evaluations:
            self._by_recipe.setdefault(candidate.recipe_digest, candidate.number)

    def _next_in_sequence(self) -> int:
        self._progress.sequence += 1
        return self._progress.sequence - 1

    def _add_seeds(self) -> None:
        known = {candidate.name for candidate in self.candidates.values() if candidate.origin == "seed"}
        for seed in seeds(self.problem.space):
            if seed.name not in known:
                added = self._add(seed.recipe, origin="seed", name=seed.name, genome=seed.genome)
                self._waiting.append(added)

    def _replay(self) -> None:
        """Bring the optimizer to where the record stands by repeating its asks and tells in their order."""
        events: list[tuple[int, str, CandidateRecord]] = []
        for candidate in self.candidates.values():
            self._keep(candidate)
            evaluation = candidate.evaluations.get("search")
            if candidate.asked_at is not None:
                events.append((candidate.asked_at, "ask", candidate))
            if evaluation and evaluation.told_at is not None:
                events.append((evaluation.told_at, "tell", candidate))
                fresh = evaluation.answered_from is None
                self._progress.failed += fresh and evaluation.failure is not None
            elif candidate.origin != "baseline":
                self._waiting.append(candidate)
        for expected, (sequence, event, candidate) in enumerate(sorted(events, key=lambda e: e[0])):
            if sequence != expected:
                raise BadSearch(
                    f"search {self.record.name!r}: the record has a gap at step {expected}; it was changed by hand"
                )
            self._repeat(event, candidate)
        self._progress.sequence = len(events)

    def _repeat(self, event: str, candidate: CandidateRecord) -> None:
        if event == "tell":
            self._tell(candidate)
            return
        genome = self._optimizer.ask(1)[0]
        if genome != candidate.genome:
            raise BadSearch(
                f"search {self.record.name!r} cannot be continued: repeating it, the optimizer proposes another genome "
                f"for candidate {candidate.number} than is recorded. Was it made with other versions of evomerge, "
                "cma or numpy? Use those, or start another search"
            )

    # ---------------------------------------------------------------- other documents

    def measure(self, candidates: Iterable[CandidateRecord], split: Split) -> list[CandidateRecord]:
        """Measure ``candidates`` on the documents of ``split``, those not yet measured on them; return them all."""
        wanted = [c.number for c in candidates]
        documents = self.problem.documents(split)
        missing = deque(n for n in dict.fromkeys(wanted) if not self._is_measured(n, split, documents.digest))
        self._listener.phase(split, len(set(wanted)), len(set(wanted)) - len(missing))
        while missing or self._dispatcher.in_flight:
            while missing and self._dispatcher.free > 0:
                self._dispatcher.send(Task(self._with_recipe(missing.popleft()), split, documents))
            self._dispatcher.need(len(missing) + self._dispatcher.in_flight)
            for task, outcome in self._dispatcher.collect(POLL_SECONDS):
                done = self.record.add_evaluation(
                    self.candidates[task.candidate.number], split, outcome, documents_digest=documents.digest
                )
                self._keep(done)
                self._listener.evaluated(done, split)
        self._dispatcher.need(None)
        return [self.candidates[number] for number in wanted]

    def _with_recipe(self, number: int) -> CandidateRecord:
        candidate = self.candidates[number]
        return candidate if candidate.recipe_json else replace(candidate, recipe_json=self.record.recipe_json(number))

    def _is_measured(self, number: int, split: Split, digest: str) -> bool:
        evaluation = self.candidates[number].evaluations.get(split)
        return evaluation is not None and evaluation.documents_digest == digest

    def baseline(self, name: str, recipe: Recipe) -> CandidateRecord:
        """Return the baseline candidate called ``name``, added if it is not there."""
        for candidate in self.candidates.values():
            if candidate.origin == "baseline" and candidate.name == name:
                return candidate
        return self._add(recipe, origin="baseline", name=name)


def _kept(candidate: CandidateRecord) -> CandidateRecord:
    """Return what a driver keeps of ``candidate``."""
    return replace(candidate, recipe_json="") if "search" in candidate.evaluations else candidate


class _Clock:
    """Wall time of the search over all its runs, saved now and then."""

    SAVE_EVERY_SECONDS = 10.0

    def __init__(self, record: SearchRecord) -> None:
        self._record = record
        self._before = record.row.seconds
        self._started = time.monotonic()
        self._saved = self._started

    @property
    def seconds(self) -> float:
        """Seconds spent so far."""
        return self._before + time.monotonic() - self._started

    def save(self, *, force: bool = False) -> None:
        """Record the time spent, if the last time is long enough ago."""
        now = time.monotonic()
        if force or now - self._saved > self.SAVE_EVERY_SECONDS:
            self._record.set_seconds(self.seconds)
            self._saved = now
