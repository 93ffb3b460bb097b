"""A mosaic as heat maps: one panel per chromosome, tiles across, sources down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evomerge.figures.theme import text
from search_spaces.tiles import MosaicBody

# Both run from pale to a colour of Okabe and Ito, so that order survives print and every kind of colour vision.
WEIGHTS = [[0.0, "#f1f5fa"], [0.5, "#56B4E9"], [1.0, "#01426a"]]
SIGNED = [[0.0, "#8a3c00"], [0.25, "#E69F00"], [0.5, "#f5f5f5"], [0.75, "#56B4E9"], [1.0, "#01426a"]]
ROW_PIXELS, PANEL_PIXELS = 30, 90


def mosaic_figure(body: MosaicBody, *, source_names: Sequence[str]) -> go.Figure:
    """Draw the coefficient of every source in every segment; segments are as wide as they have tiles.

    Args:
        source_names: one per source, in the order of the coefficients.
    """
    count, height = len(body.chromosomes), ROW_PIXELS * len(source_names) + PANEL_PIXELS
    figure = make_subplots(
        rows=count,
        cols=1,
        subplot_titles=[f"coefficient · {text(chromosome.name)}" for chromosome in body.chromosomes],
        vertical_spacing=PANEL_PIXELS / (count * height),
    )
    for row, chromosome in enumerate(body.chromosomes, start=1):
        figure.add_heatmap(
            x=list(chromosome.boundaries),
            y=[text(name) for name in source_names],
            z=np.array(chromosome.coefficients).T,
            coloraxis="coloraxis",
            hovertemplate="<b>%{y}</b><br>around tile %{x:.0f}<br>coefficient: %{z:.4f}<extra></extra>",
            ygap=2,
            row=row,
            col=1,
        )
    values = np.concatenate([np.ravel(chromosome.coefficients) for chromosome in body.chromosomes])
    top = max(float(np.abs(values).max()), 1e-9)
    signed = bool((values < 0.0).any())
    figure.update_layout(
        coloraxis={"colorscale": SIGNED if signed else WEIGHTS, "cmin": -top if signed else 0.0, "cmax": top},
        height=count * height + 40,
    )
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_xaxes(title_text="tiles", row=count)
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    figure.update_annotations(x=0, xanchor="left")
    return figure
