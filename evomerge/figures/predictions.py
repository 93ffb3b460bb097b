"""Surrogates against measurements: what is predicted for a candidate by all the others."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evomerge.figures.theme import BLUE, GREY, text, thinned
from evomerge.predicted import LeftOut

MOST_POINTS = 800


def predictions_figure(left_out: LeftOut) -> go.Figure:
    """Draw measured scores against leave-one-out predictions, a panel an objective; on the line both are the same."""
    titles = [f"{text(name)}, R² {r:.2f}" for name, r in left_out.r_squared.items()]
    figure = make_subplots(rows=1, cols=len(titles), subplot_titles=titles, horizontal_spacing=0.06)
    kept = thinned(len(left_out.numbers), MOST_POINTS)
    for column in range(len(titles)):
        measured, predicted = left_out.measured[kept, column], left_out.predicted[kept, column]
        ends = [float(min(measured.min(), predicted.min())), float(max(measured.max(), predicted.max()))]
        line = {"color": GREY, "dash": "dot", "width": 1}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", row=1, col=column + 1)
        figure.add_scatter(
            x=predicted,
            y=measured,
            mode="markers",
            marker={"color": BLUE, "size": 6, "opacity": 0.6},
            ids=[str(left_out.numbers[i]) for i in kept],
            text=[f"candidate {left_out.numbers[i]}" for i in kept],
            hovertemplate="%{text}<br>predicted %{x:.3f}<br>measured %{y:.3f}<extra></extra>",
            row=1,
            col=column + 1,
        )
    figure.update_xaxes(title_text="predicted by the others")
    figure.update_yaxes(title_text="measured", col=1)
    figure.update_layout(height=360, showlegend=False)
    return figure
