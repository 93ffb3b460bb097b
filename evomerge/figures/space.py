"""The measured candidates of a search in the space of three objectives."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from evomerge.figures.candidates import shown
from evomerge.figures.front import chosen_axes
from evomerge.figures.theme import hover_lines, objective_label, of_which, style, text
from evomerge.results import Results

MOST_POINTS = 1500
SYMBOLS = {"triangle-up": "diamond-open", "star": "diamond", "pentagon": "circle-open"}  # what there is in 3-D


def space_figure(results: Results, axes: Sequence[str | None] = ()) -> go.Figure:
    """Draw every measured candidate by three objectives, on search documents; drag to turn.

    Args:
        results: the search.
        axes: names of three objectives, None for the first that is not taken.

    Raises:
        ValueError: there are fewer than three objectives, or the names are unknown or equal.
    """
    chosen = chosen_axes(results, [*axes, None, None, None][:3])
    names = results.chooser.names
    columns = [names.index(objective.name) for objective in chosen]
    points = shown(results, MOST_POINTS)
    figure = go.Figure()

    def add(numbers: Sequence[int], role: str, name: str, opacity: float = 1.0) -> None:
        if not numbers:
            return
        values = results.candidates.values["search"][list(numbers)]
        color, symbol, size = style(role)
        figure.add_scatter3d(
            **dict(zip("xyz", values[:, columns].T, strict=True)),
            customdata=values,
            ids=[str(number) for number in numbers],
            text=[text(results.candidates.label(number)) for number in numbers],
            mode="markers",
            marker={"color": color, "symbol": SYMBOLS.get(symbol, symbol), "size": max(size // 2, 3)},
            opacity=opacity,
            name=text(name),
            hovertemplate=hover_lines(names).replace("</b>", "</b>, search documents"),
        )

    add(points.others, "candidate", "measured" + of_which(len(points.others), points.all_others), 0.4)
    add(points.front, "front", "front")
    for role in dict.fromkeys(role for role, _ in points.marked):
        add([number for mine, number in points.marked if mine == role], role, role)
    titles = {f"{axis}axis_title": objective_label(o) for axis, o in zip("xyz", chosen, strict=True)}
    figure.update_layout(height=560, scene={"aspectmode": "cube"})
    figure.update_scenes(**titles)
    return figure
