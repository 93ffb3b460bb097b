"""The sections of a search's page that callbacks fill: comparison, test scores, cost, niches, surrogates."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from dash import html

from evomerge import figures
from evomerge.compared import compare
from evomerge.dashboard import pages, parts
from evomerge.dashboard.parts import Children, clipped, drawn, graph
from evomerge.errors import EvomergeError
from evomerge.foreign import BROKEN
from evomerge.records import CandidateRecord, Split
from evomerge.results import Results

P = ParamSpec("P")
MOST_IDS = 60  # documents listed of each kind
_log = logging.getLogger(__name__)


def explained(make: Callable[P, Children]) -> Callable[P, Children]:
    """Let ``make`` return the reason where a record cannot be shown: one that is broken must not break the page."""

    @wraps(make)
    def made(*args: P.args, **named: P.kwargs) -> Children:
        try:
            return make(*args, **named)
        except EvomergeError as error:
            return pages.problem(str(error))
        except BROKEN as error:
            _log.warning("a record cannot be shown", exc_info=True)
            return pages.problem(f"The record of this search cannot be read: {type(error).__name__}: {error}")

    return made


def mergekit(candidate: CandidateRecord) -> Children:
    """Return the candidate's mergekit config, or why there is none."""
    from evomerge.merging.mergekit_config import to_mergekit  # takes torch along

    try:
        return [parts.copyable(to_mergekit(candidate.recipe), block=True)]
    except (EvomergeError, ValueError, OSError) as error:
        return [html.P(f"No mergekit config: {clipped(error)}", className="warn")]


def comparison(results: Results, numbers: tuple[int, int], objective: str, split: Split, *, dark: bool) -> Children:
    """Return two candidates document by document."""
    try:
        pair = [results.candidate(int(number)) for number in numbers]
        found = compare(results, pair[0], pair[1], split=split, objective=objective)
    except (EvomergeError, ValueError) as error:
        return [html.P(f"{clipped(error)}.", className="warn")]
    interval = f" [{found.difference.low:+.3f}, {found.difference.high:+.3f}]" if found.difference else ""
    one, other = (clipped(label, 60) for label in found.labels)
    about = (
        f"{one} minus {other} on the same documents: {found.mean:+.3f}{interval} (95 %, paired). An interval without 0 "
        "means that they differ."
    )
    word = "solves and the other does not" if found.binary else "scores higher"
    rows = [
        [f"{name} {word}", f"{len(ids):,}", ", ".join(map(str, ids[:MOST_IDS])) + (" …" if len(ids) > MOST_IDS else "")]
        for name, ids in ((one, found.first), (other, found.second))
    ]
    return [
        graph(drawn(figures.agreement_figure(found), dark=dark), about),
        parts.table(["documents that", "how many", "their numbers in the task"], rows, words=(2,)),
    ]


def tested(results: Results, *, dark: bool, columns: int = 3) -> Children:
    """Return the test scores of the winner beside what it is compared with."""
    if not results.table():
        return [html.P("Nothing has been measured on test documents yet: that comes last.", className="note")]
    about = "Scores on documents that neither the search nor the choice of the winner saw, with 95 % intervals."
    return [graph(drawn(figures.test_figure(results, columns=columns), dark=dark), about)]


def costs(results: Results, driver: str | None, *, dark: bool) -> Children:
    """Return where the time goes, what failed, and who works now."""
    about = (
        "Mean seconds of a candidate by what they are spent on. Waiting is the time between recording a candidate and "
        "its result in which no worker had it."
    )
    return [
        html.H3("Now"),
        *parts.activity(results, driver),
        *parts.workers_table(results),
        html.H3("Time"),
        graph(drawn(figures.costs_figure(results), dark=dark), about),
        parts.costs_table(results),
        html.P("Times are added up over workers.", className="note"),
        html.H3("Failures"),
        *parts.failures_table(results),
    ]


@explained
def niches(results: Results, *, dark: bool) -> Children:
    """Return what the niches cover over the course of the search."""
    from evomerge.niches import niche_history

    history = niche_history(results)
    if not history:
        return [html.P("No candidate with a genome has been measured yet.", className="note")]
    about = (
        f"An archive of {len(history[-1].members)} members after each evaluation: the share of search documents that "
        "some member solves, how varied the members are, and how many solve a document that one does."
    )
    return [graph(drawn(figures.niches_figure(history), dark=dark), about)]


@explained
def surrogates(results: Results, *, dark: bool) -> Children:
    """Return predictions against measurements."""
    from evomerge.figures.predictions import predictions_figure
    from evomerge.predicted import left_out

    about = "Each dot is a candidate: what the surrogate predicts for it from all the others, and what was measured."
    return [graph(drawn(predictions_figure(left_out(results)), dark=dark), about)]
