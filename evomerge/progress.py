"""Progress on the terminal: live with rich where there is one, a plain log elsewhere."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Protocol

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from evaluators.objective_kinds import AnyObjective
from evomerge.config import SearchFile
from evomerge.records import CandidateRecord, Split
from evomerge.store import SearchRecord
from evomerge.watcher import Watcher

WINDOW_SECONDS = 60.0  # rates are those of the last minute
LOG_EVERY_SECONDS = 10.0


class _Tally:
    """What both displays show: the best objectives so far, rates and time left."""

    def __init__(self, name: str = "", objectives: tuple[AnyObjective, ...] = ()) -> None:
        self.name, self.objectives = name, objectives
        self.phase = ""
        self.total = 0
        self.done = 0
        self.failed = 0
        self.best: dict[str, tuple[float, str]] = {}
        self.best_joint: tuple[float, str] | None = None
        self._recent: deque[tuple[float, int]] = deque()

    def begin_phase(self, name: str, total: int, done: int) -> None:
        self.phase, self.total, self.done = name, total, done
        self.best, self.best_joint = {}, None
        self._recent.clear()

    def add(self, candidate: CandidateRecord, split: Split) -> None:
        evaluation = candidate.evaluations[split]
        if evaluation.answered_from is not None:
            return
        self.done += 1
        now = time.monotonic()
        self._recent.append((now, evaluation.cost.documents))
        while self._recent and now - self._recent[0][0] > WINDOW_SECONDS:
            self._recent.popleft()
        if evaluation.failure:
            self.failed += 1
        if evaluation.failure or evaluation.stopped:
            return
        for objective in self.objectives:
            value = evaluation.scores[objective.name].value
            known = self.best.get(objective.name)
            if known is None or value * objective.sign > known[0] * objective.sign:
                self.best[objective.name] = (value, candidate.label)
        weights = np.array([o.weight for o in self.objectives])
        values = np.array([evaluation.scores[o.name].value * o.sign for o in self.objectives])
        joint = float(values @ weights / weights.sum())
        if self.best_joint is None or joint > self.best_joint[0]:
            self.best_joint = (joint, candidate.label)

    @property
    def rates(self) -> tuple[float, float]:
        """(candidates a minute, documents a second) over the window."""
        if len(self._recent) < 2:
            return 0.0, 0.0
        seconds = max(time.monotonic() - self._recent[0][0], 1e-3)
        return (len(self._recent) - 1) * 60.0 / seconds, sum(d for _, d in list(self._recent)[1:]) / seconds

    @property
    def line(self) -> str:
        """Rates, failures and time left in words."""
        per_minute, documents = self.rates
        parts = [f"{per_minute:.0f} candidates/min, {documents:.0f} documents/s"] if per_minute else []
        if per_minute and self.done < self.total:
            parts.append(f"{_duration((self.total - self.done) * 60.0 / per_minute)} left")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return " · ".join(parts)


class Display(Watcher, Protocol):
    """A watcher that is entered and left."""

    def __enter__(self) -> Display:
        """Start to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop to show."""


def display(console: Console) -> Display:
    """Return what suits ``console``: live on a terminal, a plain log elsewhere."""
    return LiveDisplay(console) if console.is_terminal else PlainLog(console)


class PlainLog:
    """One line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = _Tally()
        self._last = 0.0

    def __enter__(self) -> PlainLog:
        """Nothing to start."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to stop."""

    def say(self, what: str) -> None:
        """Print ``what``."""
        self._console.print(f"{time.strftime('%H:%M:%S')} {what}", markup=False, soft_wrap=True)

    def search_begins(self, record: SearchRecord, file: SearchFile) -> None:
        """Announce the search."""
        self._tally = _Tally(record.name, file.objectives)

    def phase(self, name: str, total: int, done: int) -> None:
        """Announce the phase."""
        self._tally.begin_phase(name, total, done)
        self._last = time.monotonic()
        known = f", {done} of them recorded" if done else ""
        self.say(f"{self._tally.name}: {name}, {total} evaluations{known}")

    def evaluated(self, candidate: CandidateRecord, split: Split) -> None:
        """Print a line every few seconds and at the end of a phase."""
        self._tally.add(candidate, split)
        if time.monotonic() - self._last < LOG_EVERY_SECONDS and self._tally.done != self._tally.total:
            return
        self._last = time.monotonic()
        best = f" · best joint {self._tally.best_joint[0]:.3f}" if self._tally.best_joint else ""
        tally = self._tally
        self.say(f"{tally.name}: {tally.phase} {tally.done}/{tally.total} · {tally.line}{best}")


class LiveDisplay:
    """A bar, the best values of every objective, rates and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = _Tally()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), console=console
        )
        self._task = self._bar.add_task("starting", total=None)
        self._live = Live(self._render(), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveDisplay:
        """Start to draw."""
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop to draw."""
        self._live.__exit__(kind, error, trace)

    def say(self, what: str) -> None:
        """Show what is being done."""
        self._bar.update(self._task, description=what, total=None)
        self._live.update(self._render())

    def search_begins(self, record: SearchRecord, file: SearchFile) -> None:
        """Start a new tally."""
        self._tally = _Tally(record.name, file.objectives)

    def phase(self, name: str, total: int, done: int) -> None:
        """Start a new bar."""
        self._tally.begin_phase(name, total, done)
        self._bar.update(self._task, description=f"{self._tally.name}: {name}", total=total, completed=done)
        self._live.update(self._render())

    def evaluated(self, candidate: CandidateRecord, split: Split) -> None:
        """Advance."""
        self._tally.add(candidate, split)
        self._bar.update(self._task, completed=self._tally.done)
        self._live.update(self._render())

    def _render(self) -> Group:
        tally = self._tally
        table = Table(box=None, pad_edge=False)
        table.add_column("best so far")
        table.add_column("value", justify="right")
        table.add_column("by")
        if tally.best_joint and len(tally.objectives) > 1:
            table.add_row("joint", f"{tally.best_joint[0]:.3f}", tally.best_joint[1])
        for name, (value, label) in tally.best.items():
            table.add_row(Text(name), f"{value:.3f}", Text(label))
        return Group(self._bar, Text(tally.line), *([table] if tally.best else []))


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
