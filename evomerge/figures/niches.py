"""What the niches of a search cover, and how many share them."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evomerge.figures.theme import BLUE, GREEN, VERMILION, thinned
from evomerge.niches import NichePoint

MOST_POINTS = 500


def niches_figure(history: Sequence[NichePoint]) -> go.Figure:
    """Draw coverage and entropy of the archive, and the competition within it, against evaluations."""
    kept = [history[i] for i in thinned(len(history), MOST_POINTS)]
    figure = make_subplots(rows=1, cols=2, subplot_titles=["coverage and variety", "competition"])
    x = [point.evaluations for point in kept]
    lines = (
        ("documents that some member solves", [p.coverage for p in kept], BLUE, "solid", 1),
        ("variety of the members (bits a document)", [p.entropy for p in kept], GREEN, "dash", 1),
        ("members that share a document", [p.competition for p in kept], VERMILION, "solid", 2),
    )
    for name, y, color, dash, column in lines:
        line = {"color": color, "dash": dash, "width": 2.5}
        figure.add_scatter(x=x, y=y, name=name, mode="lines", line=line, row=1, col=column)
    figure.update_xaxes(title_text="evaluations", rangemode="tozero")
    figure.update_yaxes(range=[0, 1.02], col=1)
    figure.update_yaxes(rangemode="tozero", col=2)
    figure.update_layout(height=340, hovermode="x unified")
    return figure
