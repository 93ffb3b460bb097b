"""The measured candidates of a search across all objectives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from evaluators.objective_kinds import AnyObjective
from evomerge.figures.candidates import marked, measured
from evomerge.figures.theme import GREY, STYLES, of_which, style, text, thinned
from evomerge.records import CandidateRecord
from evomerge.results import Results

MOST_LINES = 150


def parallel_figure(results: Results) -> go.Figure:
    """Draw every measured candidate as a line over all objectives, each axis from the worst to the best measured.

    Up is better on every axis. The front is blue; base, experts, uniform average and winner have their own colours.
    """
    figure = go.Figure()
    known = measured(results)
    if not known:
        return figure
    turned = np.stack([_turned(results, c) for c in known])
    low, high = turned.min(axis=0), turned.max(axis=0)
    scaled = (turned - low) / np.where(high > low, high - low, 1.0)
    row = {c.number: i for i, c in enumerate(known)}
    special = marked(results)
    apart = {*(c.number for c in results.front), *(c.number for _, c in special)}
    others = [c.number for c in known if c.number not in apart]
    kept = [others[i] for i in thinned(len(others), MOST_LINES)]
    lines = _Lines(results, figure, scaled, row)
    lines.add(kept, "measured" + of_which(len(kept), len(others)), GREY, width=0.8, opacity=0.35)
    front = [results.front[i].number for i in thinned(len(results.front), MOST_LINES)]
    name = "front" + of_which(len(front), len(results.front))
    lines.add(front, name, STYLES["front"].color, width=1.3, opacity=0.6)
    for role in dict.fromkeys(role for role, _ in special):
        numbers = [c.number for r, c in special if r == role]
        lines.add(numbers, role, style(role).color, width=4 if role == "winner" else 2.5, opacity=1.0)
    _scale_of_axes(figure, results.objectives, low, high)
    return figure


def _turned(results: Results, candidate: CandidateRecord) -> np.ndarray:
    values = results.chooser.maximised(candidate, "search")
    assert values is not None
    return values


class _Lines:
    """Candidates as lines over the objectives."""

    def __init__(self, results: Results, figure: go.Figure, scaled: np.ndarray, row: dict[int, int]) -> None:
        self._results = results
        self._figure = figure
        self._scaled = scaled
        self._row = row

    def add(self, numbers: Sequence[int], name: str, color: str, *, width: float, opacity: float) -> None:
        """Add candidates as one trace, with a gap between any two."""
        if not numbers:
            return
        objectives = self._results.objectives
        ys, labels = [], []
        for number in numbers:
            candidate = self._results.candidate(number)
            values = candidate.values("search", self._results.chooser.names)
            assert values is not None
            ys.append([*self._scaled[self._row[number]], np.nan])
            named = zip(objectives, values, strict=True)
            labels += [f"<b>{text(candidate.label)}</b><br>{text(o.name)}: {v:.4g}" for o, v in named] + [""]
        self._figure.add_scatter(
            x=[*range(len(objectives)), None] * len(numbers),
            y=np.ravel(ys),
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
