"""What all figures share: the colours and symbols of the roles, the layout templates, safe texts.

Colours are those of Okabe and Ito (2008), which people with any common colour blindness can tell apart; every role
has a symbol of its own as well, and all colours stand out on white and on near-black.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from evaluators.objective_kinds import AnyObjective
from evomerge.results import JOINT, Results

GREY, SKY, GREEN, BLUE = "#8f8f8f", "#56B4E9", "#009E73", "#0072B2"
VERMILION, PURPLE, ORANGE = "#D55E00", "#CC79A7", "#E69F00"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class Style(NamedTuple):
    """How a role is drawn: colour, Plotly symbol, size in pixels."""

    color: str
    symbol: str
    size: int


STYLES: dict[str, Style] = {
    "candidate": Style(GREY, "circle", 5),
    "front": Style(BLUE, "circle", 8),
    "base": Style(PURPLE, "square", 12),
    "expert": Style(ORANGE, "triangle-up", 13),
    "uniform average": Style(GREEN, "diamond", 13),
    "single coefficient": Style(SKY, "pentagon", 12),
    "other search": Style(GREY, "x", 10),
    "winner": Style(VERMILION, "star", 17),
}
SEARCH_LINES = (BLUE, VERMILION, GREEN, PURPLE)  # one per compared search; dashes tell them apart as well
SEARCH_DASHES = ("solid", "dash", "dot", "dashdot")


def style(role: str) -> Style:
    """Return the style of ``role``; the winners of other searches share one."""
    return STYLES.get(role, STYLES["other search"])


def template(*, dark: bool) -> go.layout.Template:
    """Return the layout template: system fonts, quiet grids."""
    ink, grid, panel = ("#e4e6ea", "#363b44", "#181c22") if dark else ("#22262c", "#dfe3e8", "#ffffff")
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zerolinecolor": grid,
        "automargin": True,
        "ticks": "",
        "ticklabelstandoff": 4,
        "title": {"standoff": 8, "font": {"size": 13}},
        "tickfont": {"size": 12},
    }
    layout: dict[str, Any] = {
        "font": {"family": FONT, "size": 13, "color": ink},
        "paper_bgcolor": panel,
        "plot_bgcolor": panel,
        "colorway": [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY],
        "xaxis": axis,
        "yaxis": axis,
        "margin": {"l": 8, "r": 8, "t": 32, "b": 8},
        "hoverlabel": {"bgcolor": panel, "bordercolor": grid, "font": {"color": ink, "family": FONT, "size": 13}},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.16, "yanchor": "top", "font": {"size": 12}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": grid, "activecolor": ink},
        "annotationdefaults": {"font": {"size": 13}, "showarrow": False},
    }
    return go.layout.Template(layout=layout)


def text(value: object) -> str:
    """Return ``value`` for a label: Plotly reads labels as a little HTML, and names are only names."""
    return html.escape(str(value), quote=False)


def objective_label(objective: AnyObjective) -> str:
    """Return an axis title: the objective's name, and which way is better where that is down."""
    return text(objective.name) + (" (less is better)" if objective.sign < 0 else "")


def joint_label(results: Results) -> str:
    """Return the title of the joint score."""
    return f"{JOINT} (scaled)" if results.joint_is_scaled else JOINT


def thinned(count: int, most: int) -> np.ndarray:
    """Return at most ``most`` positions out of ``count``, evenly spaced; which ones depends on nothing else."""
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).round().astype(int)


def of_which(shown: int, count: int) -> str:
    """Return `` (shown of count)`` where some are left out, else nothing."""
    return f" ({shown:,} of {count:,} shown)" if shown < count else ""


def hover_lines(names: Sequence[str]) -> str:
    """Return a hover template: the text in bold, then customdata under ``names``."""
    lines = [f"{text(name)}: %{{customdata[{i}]:.4g}}" for i, name in enumerate(names)]
    return "<br>".join(["<b>%{text}</b>", *lines]) + "<extra></extra>"
