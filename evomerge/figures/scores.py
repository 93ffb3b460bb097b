"""Test scores with their intervals: the winner beside what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evomerge.figures.theme import joint_label, objective_label, style, text
from evomerge.results import JOINT, Results, Row

ROW_PIXELS, PANEL_PIXELS = 24, 66


def test_figure(results: Results, others: Sequence[Results] = (), *, columns: int = 3) -> go.Figure:
    """Draw the test scores of the rows of ``results.table(others)``, a dot with its 95 % interval each.

    Args:
        results: the search.
        others: searches whose winners are shown too.
        columns: panels beside each other; 1 on a narrow page. One panel per objective, and one of the joint score
            where there are several.
    """
    rows = results.table(others)
    titles = {o.name: objective_label(o) for o in results.objectives}
    if len(titles) > 1:
        titles = {JOINT: f"<b>{joint_label(results)}</b>", **titles}
    columns = min(columns, len(titles))
    count = -(-len(titles) // columns)
    height = count * (ROW_PIXELS * max(len(rows), 1) + PANEL_PIXELS) + 20
    figure = make_subplots(
        rows=count,
        cols=columns,
        subplot_titles=list(titles.values()),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=PANEL_PIXELS / height if count > 1 else 0.0,
    )
    for position, name in enumerate(titles):
        for row in rows:
            _add_row(figure, row, name, row=position // columns + 1, col=position % columns + 1)
    figure.update_yaxes(autorange="reversed", showgrid=True, ticks="")
    figure.update_xaxes(nticks=5)
    figure.update_layout(height=height, showlegend=False, hovermode="closest")
    return figure


def _add_row(figure: go.Figure, model: Row, name: str, *, row: int, col: int) -> None:
    estimate = model.estimates.get(name)
    if estimate is None:
        return
    color, symbol, size = style(model.role)
    whisker, interval = None, "no interval known"
    if estimate.low is not None and estimate.high is not None:
        above, below = estimate.high - estimate.value, estimate.value - estimate.low
        whisker = {"type": "data", "array": [above], "arrayminus": [below], "color": color, "thickness": 2, "width": 4}
        interval = f"95 %: {estimate.low:.3f} to {estimate.high:.3f}"
    figure.add_scatter(
        x=[estimate.value],
        y=[text(model.label)],
        error_x=whisker,
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": max(size - 3, 8)},
        hovertemplate=f"<b>{text(model.label)}</b><br>{text(name)}: {estimate.value:.4f}<br>{interval}<extra></extra>",
        row=row,
        col=col,
    )
