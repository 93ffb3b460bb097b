"""The pages: the list of searches, and the page of one search before its callbacks fill it."""

from __future__ import annotations

import time
from typing import Any

from dash import dcc, html

from evomerge.columns import SPLITS
from evomerge.dashboard import parts
from evomerge.dashboard.links import search_path
from evomerge.dashboard.parts import Children, clipped
from evomerge.optimizers.settings import SURROGATE_KINDS
from evomerge.results import Results
from evomerge.standing import standing
from evomerge.storage_url import masked

STEPS = 20  # of a preference slider


def frame() -> html.Div:
    """Return what surrounds every page."""
    return html.Div(
        [
            dcc.Location(id="place", refresh="callback-nav"),
            dcc.Store(id="theme", storage_type="local"),
            dcc.Store(id="narrow"),
            dcc.Store(id="version"),
            dcc.Store(id="leader"),
            dcc.Store(id="settled"),
            dcc.Interval(id="tick", interval=3000),
            html.A("Skip to the content", href="#page", className="skip"),
            html.Header(
                [
                    dcc.Link([html.Span(className="mark"), "evomerge"], href="/", className="brand"),
                    html.Span(id="connection", className="quiet", role="status"),
                    html.Button("Dark", id="toggle", type="button", title="Switch between light and dark"),
                ],
                className="bar",
            ),
            html.Main(id="page", tabIndex="-1"),
        ]
    )


def problem(text: str) -> Children:
    """Return a page that says what is wrong."""
    return [
        html.H1("That cannot be shown"),
        html.P(clipped(text), className="warn"),
        dcc.Link("All searches", href="/"),
    ]


def searches(storage: str, cards: Children) -> Children:
    """Return the list of searches."""
    empty = html.P("No search is recorded here yet. evomerge run search.yaml starts one.", className="note")
    return [
        html.Div("dashboard", className="eyebrow"),
        html.H1("Searches"),
        html.P(["Recorded in ", html.Code(clipped(masked(storage)))], className="note"),
        html.Div(cards or empty, className="cards"),
    ]


def search_card(results: Results, *, now: float | None = None) -> Any:
    """Return one search of the list."""
    last = parts.last_result(results, time.time() if now is None else now)
    facts = [f"{len(results.front):,} on the front", f"last result {last or 'never'}", results.optimizer]
    failed = sum(results.failures.values())
    inside = [
        html.Div([html.B(clipped(results.record.name, 80)), parts.pill(standing(results))], className="standing"),
        parts.progress(results),
        html.P(" · ".join([*facts, f"{failed:,} failed"] if failed else facts), className="note"),
    ]
    return dcc.Link(inside, href=search_path(results.record.name), className="card")


def broken_card(name: str, error: str) -> html.Div:
    """Return a search of the list that cannot be read."""
    return html.Div([html.B(clipped(name, 80)), html.P(clipped(error), className="warn")], className="card")


def search(results: Results) -> Children:
    """Return the page of one search; callbacks fill in what has an id."""
    name = clipped(results.record.name, 200)
    return [
        html.Div(["search · ", dcc.Link("all searches", href="/")], className="eyebrow"),
        html.H1(name),
        dcc.Location(id="selection", refresh="callback-nav"),
        html.Div(id="headline"),
        html.Nav([html.A(text, href=f"#{anchor}") for anchor, text in _sections(results)], className="sections"),
        _front(results),
        html.Section(id="candidate", **{"aria-live": "polite"}),
        html.Section([html.H2("Two models, document by document"), *_compare(results)], id="compare"),
        html.Section([html.H2("How the search went"), *_progress()], id="progress"),
        html.Section([html.H2("On test documents"), html.Div(id="tested")], id="test"),
        html.Section([html.H2("Niches"), *_on_demand("niches", _NICHES)], id="niches-section"),
        *([_surrogates()] if _has_surrogates(results) else []),
        html.Section([html.H2("Cost, failures, workers"), html.Div(id="costs")], id="cost"),
        html.Footer(f"Read from {masked(results.record.store.storage)}; nothing here writes to it."),
    ]


_NICHES = (
    "Documents are niches that the members of an archive share: this shows how many of them some member solves, how "
    "varied the members are, and how many share a document. It is computed from every document of every candidate."
)


def _sections(results: Results) -> list[tuple[str, str]]:
    several = [("front", "Front")] if len(results.objectives) > 1 else []
    rest = [("candidate", "Candidate"), ("compare", "Compare"), ("progress", "Course"), ("test", "Test")]
    surrogates = [("surrogates-section", "Surrogates")] if _has_surrogates(results) else []
    return [*several, *rest, ("niches-section", "Niches"), *surrogates, ("cost", "Cost")]


def _has_surrogates(results: Results) -> bool:
    return results.file.optimizer.kind in SURROGATE_KINDS


def _front(results: Results) -> html.Section:
    names = list(results.chooser.names)
    options = [{"label": clipped(name, 60), "value": name} for name in names]
    views = [("2-D", "plane"), *([("3-D", "space"), ("all objectives", "parallel")] if len(names) > 2 else [])]
    axes = [  # those that do not exist are there, too, since callbacks name them
        html.Label(
            [axis, dcc.Dropdown(options, names[min(i, len(names) - 1)], id=f"axis-{axis}", clearable=False)],
            id=f"axis-label-{axis}",
            className="axis",
            hidden=not parts.has_axis("plane", i, len(names)),
        )
        for i, axis in enumerate("xyz")
    ]
    radio = dcc.RadioItems([{"label": a, "value": b} for a, b in views], "plane", id="view", inline=True)
    sliders = [html.Label([clipped(name, 60), _slider(i)]) for i, name in enumerate(names)]
    beside = [
        html.H3("What matters to you?"),
        html.P(
            "The sliders weigh the objectives and pick the model of the front that suits them best.", className="note"
        ),
        html.Div(sliders, className="sliders"),
        html.Div(id="picked", **{"aria-live": "polite"}),
    ]
    figure = html.Figure(
        [
            dcc.Graph(id="front-figure", config=parts.GRAPH, className="tall"),
            html.Figcaption(
                "Each dot or line is a merged model; click one to open it. Filled symbols are scores on search "
                "documents, crosses with 95 % intervals scores on test documents, open circles (in the legend) on "
                "validation documents. The best of many search scores is partly luck: "
                "only test scores count as results."
            ),
        ]
    )
    controls = html.Div([html.Div(radio, hidden=len(views) == 1), *axes], className="controls")
    inside = [html.H2("The front"), html.Div([html.Div([controls, figure]), html.Aside(beside)], className="wide")]
    return html.Section(inside, id="front", hidden=len(names) < 2)


def _slider(position: int) -> Any:
    marks = {0: "not", 1: "as given", 2: "twice"}
    return dcc.Slider(
        0, 2, 2 / STEPS, value=1, marks=marks, id={"slider": position}, allow_direct_input=False, updatemode="mouseup"
    )


def _compare(results: Results) -> Children:
    names = [{"label": clipped(name, 60), "value": name} for name in results.chooser.names]
    splits = [{"label": f"{split} documents", "value": split} for split in SPLITS]
    number = {"type": "number", "min": 0, "step": 1, "debounce": True}
    controls = [
        html.Label(["first", dcc.Input(id="first", placeholder="number", **number)]),
        html.Label(["second", dcc.Input(id="second", placeholder="number", **number)]),
        html.Label(["objective", dcc.Dropdown(names, results.chooser.names[0], id="objective", clearable=False)]),
        html.Label(["measured on", dcc.Dropdown(splits, "search", id="split", clearable=False)]),
    ]
    return [html.Div(controls, className="controls"), html.Div(id="comparison")]


def _progress() -> Children:
    over = [{"label": "evaluations", "value": "evaluations"}, {"label": "time", "value": "time"}]
    return [
        html.Div(
            html.Label(["against", dcc.RadioItems(over, "evaluations", id="over", inline=True)]), className="controls"
        ),
        html.Figure(
            [
                dcc.Graph(id="progress-figure", config=parts.QUIET),
                html.Figcaption(
                    "The best score so far is the weighted mean of the objectives on search documents. The hypervolume "
                    "is the volume of objective space that the front dominates, above the worst seeds."
                ),
            ]
        ),
    ]


def _on_demand(name: str, about: str) -> Children:
    """Something that takes a while: a button asks for it."""
    return [
        html.P(about, className="note"),
        html.Button("Compute", id=f"{name}-button", type="button"),
        html.Div(id=name),
    ]


def _surrogates() -> html.Section:
    about = "How well the surrogates of this search predict a candidate from all the others."
    return html.Section([html.H2("Surrogates"), *_on_demand("surrogates", about)], id="surrogates-section")
