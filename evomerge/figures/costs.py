"""Where the time of a search goes: seconds of a candidate by what they are spent on, over the course of the search."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from evomerge.columns import COSTS, Columns
from evomerge.figures.theme import BLUE, GREEN, GREY, ORANGE
from evomerge.results import Results

MOST_BARS = 60
PARTS = (("merging", GREEN), ("in the model", BLUE), ("rest of the evaluation", ORANGE), ("waiting", GREY))


def seconds_by_part(columns: Columns, rows: np.ndarray) -> np.ndarray:
    """Return (rows, `PARTS`) seconds of evaluations: merging, in the model, the rest of it, and waiting.

    An evaluation waits from when its candidate was recorded until it is, as far as it was not worked on: for a worker,
    for the network, for the record.
    """
    merge, forward, whole = (columns.costs[rows, COSTS.index(f"{name}seconds")] for name in ("merge_", "forward_", ""))
    known = columns.evaluations
    there = known.created[rows] - columns.created[known.candidates[rows]]
    parts = np.column_stack([merge, forward, whole - merge - forward, there - whole])
    return np.asarray(np.maximum(parts, 0.0))


def costs_figure(results: Results) -> go.Figure:
    """Draw the mean seconds of a new evaluation on search documents, stacked, in up to 60 stretches of the search."""
    rows = results.fresh["search"]
    figure = go.Figure()
    if len(rows):
        seconds = seconds_by_part(results.candidates, rows)
        stretches = np.array_split(np.arange(len(rows)), min(MOST_BARS, len(rows)))
        means = np.array([seconds[stretch].mean(axis=0) for stretch in stretches])
        ends = [f"{stretch[0] + 1:,}–{stretch[-1] + 1:,}" for stretch in stretches]
        for (name, color), values in zip(PARTS, means.T, strict=True):
            figure.add_bar(
                x=[stretch.mean() + 1 for stretch in stretches],
                y=values,
                width=[len(stretch) for stretch in stretches],
                customdata=ends,
                name=name,
                marker={"color": color, "line": {"width": 0}},
                hovertemplate=f"evaluations %{{customdata}}<br>{name}: %{{y:.3g}} s<extra></extra>",
            )
    figure.update_layout(barmode="stack", bargap=0, height=320, yaxis_title="seconds", xaxis_title="evaluations")
    return figure
