"""A path as a picture: hops across, layers up, a colour and a symbol for every model, scales below."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evomerge.figures.theme import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, text
from search_spaces.recipe import PathBody, slot_names

COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star", "cross", "x")
HOVER = "hop %{x}, scale %{customdata[0]:.4f}<extra></extra>"
PATH_PIXELS, SCALE_PIXELS = 300, 130


def path_figure(body: PathBody, *, source_names: Sequence[str]) -> go.Figure:
    """Draw which layer of which model every hop visits and, where any is not 1, the scale before it.

    Args:
        source_names: one per source of the recipe, in its order.
    """
    rows = 2 if body.scaled else 1
    heights = [PATH_PIXELS, SCALE_PIXELS][:rows]
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.08)
    places = list(range(1, len(body.hops) + 1))
    figure.add_scatter(
        x=places,
        y=[hop.layer for hop in body.hops],
        mode="lines",
        line={"color": GREY, "width": 1},
        hoverinfo="skip",
        showlegend=False,
    )
    for number, name in enumerate(slot_names(body.slots, source_names)):
        visits = [(place, hop) for place, hop in zip(places, body.hops, strict=True) if hop.slot == number]
        figure.add_scatter(
            x=[place for place, _ in visits],
            y=[hop.layer for _, hop in visits],
            customdata=[[hop.scale] for _, hop in visits],
            mode="markers",
            name=text(name),
            marker={"color": COLORS[number % len(COLORS)], "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 11},
            hovertemplate=f"<b>{text(name)}</b><br>layer %{{y}}<br>" + HOVER,
        )
    if body.scaled:
        _add_scales(figure, body, places)
    figure.update_yaxes(title_text="layer", row=1)
    figure.update_xaxes(title_text="hop", row=rows)
    figure.update_layout(height=sum(heights) + 90, hovermode="closest")
    return figure


def _add_scales(figure: go.Figure, body: PathBody, places: Sequence[int]) -> None:
    figure.add_bar(
        x=list(places),
        y=[hop.scale - 1.0 for hop in body.hops],
        base=1.0,
        marker={"color": GREY},
        customdata=[[hop.scale] for hop in body.hops],
        hovertemplate=HOVER,
        showlegend=False,
        row=2,
        col=1,
    )
    figure.update_yaxes(title_text="scale", row=2)
