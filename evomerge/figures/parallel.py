"""The measured candidates of a search across all objectives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from evaluators.objective_kinds import AnyObjective
from evomerge.figures.candidates import shown
from evomerge.figures.theme import GREY, STYLES, of_which, style, text, thinned
from evomerge.results import Results

MOST_LINES = 150


def parallel_figure(results: Results) -> go.Figure:
    """Draw every measured candidate as a line over all objectives, each axis from the worst to the best measured.

    Up is better on every axis. The front is blue; base, experts, uniform average and winner have their own colours.
    """
    figure = go.Figure()
    columns, signs = results.candidates, results.signs
    known = columns.measured("search")
    if not len(known):
        return figure
    turned = columns.values["search"] * signs
    low, high = turned[known].min(axis=0), turned[known].max(axis=0)
    lines = _Lines(results, figure, (turned - low) / np.where(high > low, high - low, 1.0))
    points = shown(results, MOST_LINES)
    lines.add(points.others, "measured" + of_which(len(points.others), points.all_others), GREY, 0.8, opacity=0.35)
    front = [points.front[i] for i in thinned(len(points.front), MOST_LINES)]
    name = "front" + of_which(len(front), len(points.front))
    lines.add(front, name, STYLES["front"].color, 1.3, opacity=0.6)
    for role in dict.fromkeys(role for role, _ in points.marked):
        numbers = [number for r, number in points.marked if r == role]
        lines.add(numbers, role, style(role).color, 4 if role == "winner" else 2.5)
    _scale_of_axes(figure, results.objectives, low, high)
    return figure


class _Lines:
    """Candidates as lines over the objectives."""

    def __init__(self, results: Results, figure: go.Figure, scaled: np.ndarray) -> None:
        """``scaled``: (candidates, objectives) heights, 0 the worst and 1 the best measured."""
        self._results = results
        self._figure = figure
        self._scaled = scaled

    def add(self, numbers: Sequence[int], name: str, color: str, width: float, *, opacity: float = 1.0) -> None:
        """Add candidates as one trace, with a gap between any two."""
        if not numbers:
            return
        columns, objectives = self._results.candidates, self._results.objectives
        ys, labels = [], []
        for number in numbers:
            ys.append([*self._scaled[number], np.nan])
            label, values = text(columns.label(number)), columns.values["search"][number].tolist()
            named = zip(objectives, values, strict=True)
            labels += [f"<b>{label}</b><br>{text(o.name)}: {v:.4g}" for o, v in named] + [""]
        self._figure.add_scatter(
            x=[*range(len(objectives)), None] * len(numbers),
            y=np.ravel(ys),
            ids=[str(number) for number in numbers for _ in range(len(objectives) + 1)],
            text=labels,
            mode="lines",
            line={"color": color, "width": width},
            opacity=opacity,
            name=text(name),
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )


def _scale_of_axes(figure: go.Figure, objectives: Sequence[AnyObjective], low: np.ndarray, high: np.ndarray) -> None:
    """Write the best and the worst value over and under each axis."""
    for position, (objective, worst, best) in enumerate(zip(objectives, low, high, strict=True)):
        figure.add_vline(x=position, line={"width": 1, "color": GREY})
        for value, at, anchor in ((best, 1.02, "bottom"), (worst, -0.02, "top")):
            figure.add_annotation(
                x=position, y=at, yanchor=anchor, text=f"{value * objective.sign:.3g}", font={"size": 11}
            )
    names = [f"{text(o.title)}<br>{text(o.detail)}" for o in objectives]
    last = len(objectives) - 1
    figure.update_layout(
        height=420,
        xaxis={
            "tickvals": list(range(last + 1)),
            "ticktext": names,
            "range": [-0.12 * last, 1.12 * last],
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={"visible": False, "range": [-0.12, 1.12]},
        hovermode="closest",
    )
