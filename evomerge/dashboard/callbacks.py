"""What happens when something is clicked, or the record grows. What a page shows is made by functions of `Results`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import plotly.graph_objects as go
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update

from evomerge import figures, report_facts
from evomerge.dashboard import pages, parts, sections
from evomerge.dashboard.links import chosen, query, search_name
from evomerge.dashboard.live import Live, version
from evomerge.dashboard.parts import Children, drawn
from evomerge.dashboard.sections import explained
from evomerge.errors import BadSearch, EvomergeError
from evomerge.export import preferred
from evomerge.foreign import BROKEN
from evomerge.preferences import UNNAMED_WEIGHT, WeightedSettings
from evomerge.records import CandidateRecord, Split
from evomerge.results import Results

DARK = "dark"


def register(app: Dash, live: Live) -> None:
    """Add all callbacks to ``app``."""
    app.clientside_callback(
        ClientsideFunction("evomerge", "theme"),
        Output("theme", "data"),
        Output("toggle", "children"),
        Output("narrow", "data"),
        Input("toggle", "n_clicks"),
        State("theme", "data"),
    )
    app.clientside_callback(
        ClientsideFunction("evomerge", "settled"),
        Output("settled", "data"),
        Input("front-figure", "figure"),
        State("version", "data"),
        State("settled", "data"),
    )
    _register_page(app, live)
    _register_front(app, live)
    _register_candidate(app, live)
    _register_sections(app, live)


# ---------------------------------------------------------------- pages


def _register_page(app: Dash, live: Live) -> None:
    @app.callback(Output("page", "children"), Input("place", "pathname"))
    def show_page(path: str | None) -> Children:
        return page(live, path)

    @app.callback(
        Output("version", "data"),
        Output("leader", "data"),
        Output("page", "children", allow_duplicate=True),
        Input("tick", "n_intervals"),
        Input("place", "pathname"),
        State("version", "data"),
        State("leader", "data"),
        prevent_initial_call="initial_duplicate",
    )
    def tick(_count: int | None, path: str | None, shown: str | None, led: str | None) -> tuple[Any, Any, Any]:
        name = search_name(path)
        if name is None:
            again = ctx.triggered_id == "tick" and path in (None, "/")
            return no_update, no_update, page(live, path) if again else no_update
        results = _results(live, path)
        if results is None:
            return no_update, no_update, no_update  # the page says what is wrong
        now, leads = f"{name} {version(results)}", f"{name} {_leader(results)}"
        return (now if now != shown else no_update), (leads if leads != led else no_update), no_update


def read_ahead(live: Live, name: str | None) -> None:
    """Do what the first visitor would wait for: read a search (None: the newest) and draw its front."""
    with suppress(EvomergeError, *BROKEN):  # the page says what is wrong
        for newest in live.names()[:1]:
            results = live.results(name or newest)
            front(results, "plane", ()).to_json()
            parts.headline(results)


def _leader(results: Results) -> str:
    """Who is shown where nobody is chosen, and what is known of it."""
    candidate = shown_candidate(results, None)
    return f"{candidate.number} {sorted(candidate.evaluations)}" if candidate else "nobody"


@explained
def page(live: Live, path: str | None) -> Children:
    """Return the page at ``path``."""
    name = search_name(path)
    if name is not None:
        return pages.search(live.results(name))
    if path not in (None, "/"):
        raise BadSearch(f"there is no page {path!r}")
    return pages.searches(live.store.storage, [_card(live, each) for each in live.names()])


def _card(live: Live, name: str) -> Any:
    try:
        return pages.search_card(live.results(name))
    except (EvomergeError, *BROKEN) as error:
        return pages.broken_card(name, f"{type(error).__name__}: {error}")


# ---------------------------------------------------------------- the front


def _register_front(app: Dash, live: Live) -> None:
    @app.callback(
        Output("front-figure", "figure"),
        Input("version", "data"),
        Input("view", "value"),
        Input("axis-x", "value"),
        Input("axis-y", "value"),
        Input("axis-z", "value"),
        Input("theme", "data"),
        State("place", "pathname"),
    )
    def draw_front(_version: Any, view: str, x: str, y: str, z: str, theme: str, path: str) -> Any:
        results = _results(live, path)
        return drawn(front(results, view, (x, y, z)), dark=theme == DARK) if results else no_update

    @app.callback(
        *[Output(f"axis-label-{axis}", "hidden") for axis in "xyz"],
        Input("view", "value"),
        State("place", "pathname"),
    )
    def show_axes(view: str, path: str) -> Any:
        results = _results(live, path)
        count = len(results.objectives) if results else 0
        return [not parts.has_axis(view, axis, count) for axis in range(3)]

    @app.callback(
        Output("selection", "search"),
        Output("first", "value"),
        Output("second", "value"),
        Input("selection", "search"),
        Input("front-figure", "clickData"),
        Input("first", "value"),
        Input("second", "value"),
        Input({"slider": ALL}, "value"),
        State("place", "pathname"),
    )
    def choose(
        search: str | None, click: Any, first: Any, second: Any, weights: list[float], path: str
    ) -> tuple[Any, Any, Any]:
        results = _results(live, path)
        if results is None:
            return no_update, no_update, no_update
        new = chosen_query(results, ctx.triggered_id, click, (first, second), weights, search)
        pair = compared(results, search if new is None else new)
        return (no_update if new is None else new), *pair

    @app.callback(
        Output("picked", "children"),
        Input("selection", "search"),
        Input("version", "data"),
        State("place", "pathname"),
    )
    def describe(search: str | None, _version: Any, path: str) -> Any:
        results = _results(live, path)
        candidate = shown_candidate(results, search) if results else None
        return parts.summary_of(results, candidate.number) if results and candidate else []


def front(results: Results, view: str, axes: Sequence[str | None]) -> go.Figure:
    """Return the front as ``view`` says; of equal axes the later ones give way."""
    if not results.front or len(results.objectives) < 2:
        return go.Figure(layout={"annotations": [{"text": "Nothing has been measured yet.", "showarrow": False}]})
    if view == "parallel":
        return figures.parallel_figure(results)
    count = 3 if view == "space" else 2
    apart = [name if name not in axes[:i] else None for i, name in enumerate(axes[:count])]
    return figures.space_figure(results, apart) if view == "space" else figures.front_figure(results, *apart)


def chosen_query(
    results: Results,
    trigger: Any,
    click: Any,
    numbers: tuple[int | None, int | None],
    factors: Sequence[float],
    search: str | None,
) -> str | None:
    """Return the address' end after a click on a point, a number typed in, or a slider moved; None if it stays."""
    one, other = chosen(search), chosen(search, "with")
    if trigger == "front-figure":
        one = clicked(click)
    elif trigger in ("first", "second"):
        one, other = numbers
    elif isinstance(trigger, dict):
        picked = pick(results, factors)
        one = picked.number if picked else one
    new = query(one, other)
    return None if one is None or new == (search or "") else new


def compared(results: Results, search: str | None) -> tuple[int | None, int | None]:
    """Return the numbers of the two candidates that are compared: the chosen one, and the uniform average unless the
    address names another."""
    one, other = shown_candidate(results, search), chosen(search, "with")
    if other is None and results.references:
        other = results.references[-1].number
    return (one.number if one else None), other


def clicked(click: Any) -> int | None:
    """Return the number of the candidate whose point was clicked."""
    points = (click or {}).get("points") or [{}]
    key = str(points[0].get("id", ""))
    return int(key) if key.isascii() and key.isdigit() else None


def pick(results: Results, factors: Sequence[float]) -> CandidateRecord | None:
    """Return the model of the front that suits best when the objectives' weights are multiplied by ``factors``."""
    weights = [o.weight * max(float(f), 0.0) for o, f in zip(results.objectives, factors, strict=True)]
    if not any(weights):
        weights = [o.weight for o in results.objectives]
    objectives = tuple(
        o.model_copy(update={"weight": max(w, UNNAMED_WEIGHT)})
        for o, w in zip(results.objectives, weights, strict=True)
    )
    return preferred(results, objectives, WeightedSettings())[0]


def shown_candidate(results: Results, search: str | None) -> CandidateRecord | None:
    """Return the candidate that the address names; else the winner, or who is preferred so far."""
    number = chosen(search)
    if number is not None and number < len(results.candidates):
        return results.candidates[number]
    return report_facts.chosen(results)


# ---------------------------------------------------------------- the candidate, and two of them


def _register_candidate(app: Dash, live: Live) -> None:
    @app.callback(
        Output("candidate", "children"),
        Input("selection", "search"),
        Input("leader", "data"),
        Input("theme", "data"),
        State("place", "pathname"),
    )
    def show(search: str | None, _leader: Any, theme: str, path: str) -> Any:
        results = _results(live, path)
        candidate = shown_candidate(results, search) if results else None
        return _candidate(results, candidate, theme) if results and candidate else []

    @app.callback(
        Output("comparison", "children"),
        Input("first", "value"),
        Input("second", "value"),
        Input("objective", "value"),
        Input("split", "value"),
        Input("theme", "data"),
        State("place", "pathname"),
    )
    def show_comparison(first: Any, second: Any, objective: str, split: Split, theme: str, path: str) -> Any:
        results = _results(live, path)
        if results is None or first is None or second is None:
            return []
        return sections.comparison(results, (first, second), objective, split, dark=theme == DARK)

    @app.callback(
        Output("mergekit", "children"),
        Input("mergekit-button", "n_clicks"),
        State("selection", "search"),
        State("place", "pathname"),
        prevent_initial_call=True,
    )
    def show_mergekit(clicks: int | None, search: str | None, path: str) -> Any:
        results = _results(live, path)
        candidate = shown_candidate(results, search) if results and clicks else None
        return sections.mergekit(candidate) if candidate else no_update


@explained
def _candidate(results: Results, candidate: CandidateRecord, theme: str) -> Children:
    return parts.candidate_card(results, candidate, dark=theme == DARK)


# ---------------------------------------------------------------- the other sections


def _register_sections(app: Dash, live: Live) -> None:
    @app.callback(Output("headline", "children"), Input("version", "data"), State("place", "pathname"))
    def show_headline(_version: Any, path: str) -> Any:
        results = _results(live, path)
        return parts.headline(results) if results else no_update

    @app.callback(
        Output("progress-figure", "figure"),
        Input("settled", "data"),
        Input("over", "value"),
        Input("theme", "data"),
        State("narrow", "data"),
        State("place", "pathname"),
    )
    def draw_progress(_settled: Any, over: str, theme: str, narrow: bool | None, path: str) -> Any:
        results = _results(live, path)
        if results is None:
            return no_update
        return drawn(
            figures.progress_figure(results, columns=1 if narrow else 2, over_time=over == "time"), dark=theme == DARK
        )

    @app.callback(
        Output("tested", "children"),
        Input("settled", "data"),
        Input("theme", "data"),
        State("narrow", "data"),
        State("place", "pathname"),
    )
    def show_tested(_settled: Any, theme: str, narrow: bool | None, path: str) -> Any:
        results = _results(live, path)
        columns = 1 if narrow else 3
        return sections.tested(results, dark=theme == DARK, columns=columns) if results else no_update

    @app.callback(
        Output("costs", "children"), Input("settled", "data"), Input("theme", "data"), State("place", "pathname")
    )
    def show_costs(_settled: Any, theme: str, path: str) -> Any:
        results = _results(live, path)
        if not results:
            return no_update
        driver = live.store.driver(results.record.name)
        return sections.costs(results, driver.owner if driver else None, dark=theme == DARK)

    _on_demand(app, live, "niches", sections.niches)
    _on_demand(app, live, "surrogates", sections.surrogates)


def _on_demand(app: Dash, live: Live, name: str, make: Callable[..., Children]) -> None:
    @app.callback(
        Output(name, "children"),
        Input(f"{name}-button", "n_clicks"),
        Input("theme", "data"),
        State("place", "pathname"),
        running=[(Output(f"{name}-button", "disabled"), True, False)],
        prevent_initial_call=True,
    )
    def show(clicks: int | None, theme: str, path: str) -> Any:
        results = _results(live, path) if clicks else None
        return make(results, dark=theme == DARK) if results else no_update


def _results(live: Live, path: str | None) -> Results | None:
    name = search_name(path)
    if name is None:
        return None
    try:
        return live.results(name)
    except (EvomergeError, *BROKEN):
        return None  # the page says what is wrong
