"""Pieces of the dashboard's pages, as functions of `Results`. Dash escapes every text; figures escape their own."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from dash import dcc, html

from evomerge import crews, figures, report_facts
from evomerge.columns import NONE, SPLITS
from evomerge.dashboard.links import candidate_link
from evomerge.records import CandidateRecord
from evomerge.results import JOINT, Estimate, Results
from evomerge.standing import Standing, standing
from evomerge.tables import in_words

MOST_RECIPE_CHARACTERS = 200_000  # of a recipe that is shown as text; more freezes a browser
MOST_TEXT = 500  # characters of a message or name
MOST_PARENTS = 24
LIVE_SECONDS = 60.0  # without anything new a search is quiet
GRAPH = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]]}
QUIET = {**GRAPH, "displayModeBar": False}

Children = list[Any]


def drawn(figure: go.Figure, *, dark: bool) -> go.Figure:
    """Return ``figure`` in the colours of the page; zoom and legend stay when it is drawn again."""
    figure.layout.template = figures.template(dark=dark)
    figure.layout.uirevision = "same"
    if "scene" in figure.layout:
        ink = "#e4e6ea" if dark else "#22262c"
        figure.update_scenes(
            {f"{a}axis": {"gridcolor": "#8f8f8f", "color": ink, "backgroundcolor": "rgba(0,0,0,0)"} for a in "xyz"}
        )
    return figure


def has_axis(view: str, axis: int, objectives: int) -> bool:
    """Return whether a ``view`` of the front lets one choose its ``axis`` (0, 1, 2)."""
    return axis < min({"plane": 2, "space": 3}.get(view, 0), objectives)


def graph(figure: go.Figure, about: str, **properties: Any) -> html.Figure:
    """Return ``figure`` with the sentence that explains it."""
    return html.Figure([dcc.Graph(figure=figure, config=QUIET, **properties), html.Figcaption(about)])


def clipped(text: object, most: int = MOST_TEXT) -> str:
    """Return ``text`` as something that can be sent and shown: valid Unicode, of bounded length."""
    valid = str(text).encode("utf-8", "replace").decode()
    return valid if len(valid) <= most else f"{valid[:most]}… ({len(valid):,} characters)"


def pill(now: Standing) -> html.Span:
    """Return the state of a search as a coloured word."""
    return html.Span(now.words, className=f"pill {now.state}")


def progress(results: Results) -> html.Div:
    """Return a bar of evaluations spent, with the words beside it."""
    spent, budget = results.spent, results.file.budget.evaluations
    words = f"{spent:,} of {budget:,} evaluations"
    bar = html.Progress(value=str(min(spent, budget)), max=str(budget), **{"aria-label": words})
    return html.Div([bar, html.Span(words)], className="progress")


def headline(results: Results) -> Children:
    """Return state, progress and the facts of a search."""
    known = [fact for fact in report_facts.headline_facts(results) if fact["name"] not in ("state", "evaluations")]
    items = [html.Li([html.B(clipped(fact["value"])), html.Span(fact["name"])]) for fact in known]
    now = standing(results)
    remedy = [html.P(f"{now.remedy[0].upper()}{now.remedy[1:]}.", className="warn")] if now.remedy else []
    top = html.Div([pill(now), progress(results)], className="standing")
    return [top, *remedy, html.Ul(items, className="facts")]


def scores(results: Results, candidate: CandidateRecord, *, last: bool = False) -> html.Div:
    """Return a table of a candidate's scores with 95 % intervals, a column a split, or the ``last`` split alone."""
    splits = [split for split in SPLITS if split in candidate.evaluations]
    splits = splits[-1:] if last else splits
    names = list(results.chooser.names)
    rows = ([JOINT] if len(names) > 1 else []) + names
    estimates = {split: results.estimate(candidate, split) for split in splits}
    head = html.Tr([html.Th("objective"), *[html.Th([split, html.Br(), "documents"]) for split in splits]])
    body = [
        html.Tr([html.Th(clipped(name, 80)), *[html.Td(_estimate(estimates[split].get(name))) for split in splits]])
        for name in rows
    ]
    notes: Children = []
    for split in splits:
        evaluation = candidate.evaluations[split]
        if evaluation.failure:
            text = f"{split}: {evaluation.failure.kind.value.replace('_', ' ')}: {evaluation.failure.message}"
            notes.append(html.P(clipped(text), className="warn"))
        if evaluation.stopped:
            notes.append(
                html.P(f"{split}: {in_words(evaluation.stopped)}; it has estimates, no scores.", className="warn")
            )
    if not splits:
        notes.append(html.P("It has not come back yet.", className="warn"))
    table = html.Div(html.Table([html.Thead(head), html.Tbody(body)]), className="scroll")
    return html.Div([table, *notes] if splits else notes)


def _estimate(estimate: Estimate | None) -> Any:
    if estimate is None:
        return html.Span("–", className="quiet")
    if estimate.low is None or estimate.high is None:
        return html.B(f"{estimate.value:.3f}")
    return [html.B(f"{estimate.value:.3f}"), html.Small(f"{estimate.low:.3f} – {estimate.high:.3f}")]


def candidate_card(results: Results, candidate: CandidateRecord, *, dark: bool) -> Children:
    """Return everything about one candidate: scores, recipe, how to get it, where it comes from."""
    left = [
        html.H3("Scores"),
        scores(results, candidate),
        html.P("Small figures are 95 % intervals. Only scores on test documents count as results.", className="note"),
        html.H3("Lineage"),
        *lineage(results, candidate),
        html.H3("Take it"),
        html.P("Write it as an ordinary checkpoint:"),
        copyable(report_facts.export_command(results, candidate)),
        html.Button("Show the mergekit config", id="mergekit-button", type="button"),
        html.Div(id="mergekit"),
    ]
    return [
        html.H2([_title(results, candidate), html.Span(candidate.origin, className="tag")]),
        html.Div(
            [html.Div(left), html.Div([html.H3("Recipe"), *recipe(results, candidate, dark=dark)])], className="two"
        ),
    ]


def _title(results: Results, candidate: CandidateRecord) -> str:
    label = clipped(candidate.label, 80)
    return (
        f"The winner: {label}" if results.winner and results.winner.number == candidate.number else label.capitalize()
    )


def recipe(results: Results, candidate: CandidateRecord, *, dark: bool) -> Children:
    """Return a candidate's recipe as a figure and as text."""
    text = json.dumps(json.loads(candidate.recipe_json), indent=1, ensure_ascii=False)
    names = [source.short_name for source in (results.file.sources.base, *results.file.sources.experts)]
    try:
        body = candidate.recipe
        figure = figures.recipe_figure(body, source_names=names, layers=results.record.row.plan["layers"])
        shown: Any = graph(drawn(figure, dark=dark), report_facts.body_in_words(results, body))
    except ValueError as error:  # a record of another version, or changed by hand
        shown = html.P(f"The recipe cannot be drawn: {clipped(error)}", className="warn")
    whole = [html.Summary("The whole recipe as JSON"), copyable(clipped(text, MOST_RECIPE_CHARACTERS), block=True)]
    return [shown, html.Details(whole)]


def copyable(text: str, *, block: bool = False) -> html.Div:
    """Return text with a button that copies it."""
    pre = html.Pre(text, className="block" if block else "command", tabIndex="0")
    return html.Div([pre, html.Button("Copy", type="button", className="copy-button")], className="copy")


def lineage(results: Results, candidate: CandidateRecord) -> Children:
    """Return links to the candidates that this one was made of, and to their parents."""
    if not candidate.parents:
        text = "A seed of the search." if candidate.origin == "seed" else "Its optimizer names no parents."
        return [html.P(text if candidate.origin != "baseline" else "A baseline to compare with.", className="note")]
    items: Children = []
    for parent in results.candidates.records(candidate.parents[:MOST_PARENTS]):
        before = ", ".join(results.candidates.label(n) for n in parent.parents[:MOST_PARENTS])
        link = candidate_link(results.record.name, parent.number, clipped(parent.label, 60))
        items.append(html.Li([link, html.Span(f" of {clipped(before, 200)}", className="quiet") if before else ""]))
    return [html.Ul(items, className="lineage")]


def summary_of(results: Results, number: int) -> Children:
    """Return the few lines about a candidate beside the front."""
    candidate = results.candidates[number]
    more = html.A("Recipe, lineage, export", href="#candidate")
    return [html.H3(_title(results, candidate)), scores(results, candidate, last=True), more]


def activity(results: Results, driver: str | None, *, now: float | None = None) -> Children:
    """Return who works on the search now, as far as the record knows."""
    now = time.time() if now is None else now
    columns, known = results.candidates, results.candidates.evaluations
    recent = int((known.created > now - LIVE_SECONDS).sum())
    out = _out(results)
    waits = [now - float(columns.created[number]) for number in out]
    facts = [
        ("driver", clipped(driver or "none is running")),
        ("came back in the last minute", f"{recent:,}"),
        ("last result", last_result(results, now) or "none yet"),
        ("with a worker now" if driver else "unfinished", f"{len(out):,}"),
        ("the longest since", report_facts.duration(max(waits)))
        if waits
        else ("workers", str(results.file.cluster.workers)),
    ]
    return [html.Ul([html.Li([html.B(value), html.Span(name)]) for name, value in facts], className="facts")]


def workers_table(results: Results, *, now: float | None = None) -> Children:
    """Return who works where, on what and since when, by host; nothing while no driver runs."""
    crew = crews.at_work(results.record)
    if crew is None or not crew.seats:
        return []
    now = time.time() if now is None else now
    rows: list[list[Any]] = []
    for host, seats in crew.by_host.items():
        busy = [seat for seat in seats if seat.candidate is not None]
        longest = min(busy, key=lambda seat: seat.since, default=None)
        doing = Counter("without a place" if seat.doing == "waiting" else seat.doing for seat in seats)
        link: Any = "–"
        if longest is not None and longest.candidate is not None:
            label = results.candidates.label(longest.candidate)
            since = report_facts.duration(max(now - longest.since, 0.0))
            place = candidate_link(results.record.name, longest.candidate, clipped(label, 60))
            link = [place, f" on {longest.split} documents, for {since}"]
        words = ", ".join(f"{count} {kind}" for kind, count in doing.items())
        rows.append([clipped(host, 80), f"{len(seats):,}", words, link])
    waits = [html.P(f"Workers: {crew.line}.", className="warn")] if crew.crowd else []
    return [*waits, table(["node", "workers", "what they do", "the longest at work"], rows, words=(2, 3))]


def last_result(results: Results, now: float) -> str | None:
    """Return how long before ``now`` the last evaluation was recorded, in words; None before the first."""
    known = results.candidates.evaluations
    return f"{report_facts.duration(max(now - float(known.created[-1]), 0.0))} ago" if len(known.ids) else None


def _out(results: Results) -> list[int]:
    """Numbers of the candidates that were sent to a worker and are not back, baselines left out."""
    latest = results.candidates.latest("search")
    baselines = set(results.candidates.numbers_of("baseline"))
    return [int(number) for number in (latest == NONE).nonzero()[0] if number not in baselines]


def costs_table(results: Results) -> html.Div:
    """Return what was spent, by split."""
    head = ["documents", "evaluations", "failed", "merging", "in the model", "evaluation", "documents scored", "tokens"]
    rows = [[cost["split"], *cost["cells"]] for cost in report_facts.costs(results)]
    return table(head, rows)


def failures_table(results: Results) -> Children:
    """Return the failures by kind, each with its last message and a link to the candidate."""
    failures = report_facts.failures(results)
    if not failures:
        return [html.P("None.", className="note")]
    rows = []
    for failure in failures:
        link = candidate_link(results.record.name, failure["candidate"], results.candidates.label(failure["candidate"]))
        rows.append([failure["kind"], f"{failure['count']:,}", link, clipped(failure["message"])])
    return [table(["kind", "evaluations", "the last one", "what it said"], rows, words=(2, 3))]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, words: Sequence[int] = ()) -> html.Div:
    """Return a table whose first column is its heading; ``words`` are the columns that are text, not numbers."""
    kind = ["words" if position in words else None for position in range(len(head))]
    top = html.Tr([html.Th(name, className=c) for name, c in zip(head, kind, strict=True)])
    body = [
        html.Tr([html.Th(row[0]), *[html.Td(cell, className=c) for cell, c in zip(row[1:], kind[1:], strict=True)]])
        for row in rows
    ]
    return html.Div(html.Table([html.Thead(top), html.Tbody(body)]), className="scroll")
