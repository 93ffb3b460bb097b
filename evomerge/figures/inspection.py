"""The experts beside their base as heat maps: one panel per part of the layers, layers across, experts down."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evomerge.figures.mosaic import PANEL_PIXELS, ROW_PIXELS, WEIGHTS
from evomerge.figures.theme import text
from evomerge.inspection import PARTS, Inspection

_TITLES = {"rest": "norms, biases, embeddings, head"}


def inspection_figure(inspection: Inspection) -> go.Figure:
    """Draw the distance of every expert from the base, in units of the base's norm, part by part and layer by layer.

    One scale for all panels, logarithmic: experts may be a hundred times as far away as each other.
    """
    distances = inspection.distances()
    shown = [part for part in range(len(PARTS)) if np.isfinite(distances[:, part]).any()]
    with np.errstate(divide="ignore"):
        logarithms = np.log10(distances)
    finite = logarithms[np.isfinite(logarithms)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (-3.0, 0.0)
    panel = ROW_PIXELS * len(inspection.experts) + PANEL_PIXELS
    figure = make_subplots(
        rows=len(shown),
        cols=1,
        subplot_titles=[_TITLES.get(PARTS[part], PARTS[part]) for part in shown],
        vertical_spacing=PANEL_PIXELS / (len(shown) * panel),
    )
    columns = ["before", *map(str, range(inspection.layers)), "behind"]
    for row, part in enumerate(shown, start=1):
        figure.add_heatmap(
            x=columns,
            y=[text(name) for name in inspection.experts],
            z=np.where(np.isneginf(logarithms[:, part]), low, logarithms[:, part]),
            customdata=distances[:, part],
            coloraxis="coloraxis",
            hovertemplate="<b>%{y}</b><br>layer %{x}<br>distance: %{customdata:.4g}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=2,
            row=row,
            col=1,
        )
    bar = {"title": "distance", "tickvals": np.linspace(low, high, 4).tolist(), "thickness": 12}
    bar["ticktext"] = [f"{10**value:.2g}" for value in np.linspace(low, high, 4)]
    figure.update_layout(
        coloraxis={"colorscale": WEIGHTS, "cmin": low, "cmax": max(high, low + 1e-9), "colorbar": bar},
        height=len(shown) * panel + 40,
    )
    figure.update_xaxes(type="category", showgrid=False, zeroline=False, ticks="")
    figure.update_xaxes(title_text="layers, and what lies before and behind them", row=len(shown))
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    figure.update_annotations(x=0, xanchor="left")
    return figure
