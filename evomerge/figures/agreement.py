"""Two candidates on the same documents: which of them solves what."""

from __future__ import annotations

import plotly.graph_objects as go

from evomerge.compared import Comparison
from evomerge.figures.theme import BLUE, GREEN, GREY, ORANGE, text


def agreement_figure(comparison: Comparison) -> go.Figure:
    """Draw one bar of all documents, divided by which of the two candidates scores higher on them."""
    one, other = text(comparison.labels[0]), text(comparison.labels[1])
    parts = [
        ("both solve" if comparison.binary else "both the same", len(comparison.both), GREEN),
        (f"{one} {'only' if comparison.binary else 'higher'}", len(comparison.first), BLUE),
        (f"{other} {'only' if comparison.binary else 'higher'}", len(comparison.second), ORANGE),
        ("neither solves", len(comparison.neither), GREY),
    ]
    figure = go.Figure()
    for name, count, color in parts:
        if count:
            figure.add_bar(
                x=[count],
                y=[""],
                orientation="h",
                name=name,
                marker={"color": color},
                text=f"{count:,}",
                textposition="inside",
                insidetextanchor="middle",
                hovertemplate=f"{name}: %{{x}} documents<extra></extra>",
            )
    legend = {"yref": "container", "y": 0.0, "yanchor": "bottom"}  # below the axis, on however many lines it takes
    figure.update_layout(barmode="stack", height=220, xaxis_title="documents", legend=legend, margin_t=8)
    figure.update_yaxes(showticklabels=False)
    return figure
