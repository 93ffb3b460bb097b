"""How a search went: its best joint score and its hypervolume after so many evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evomerge.archives import pareto
from evomerge.figures.theme import GREY, SEARCH_DASHES, SEARCH_LINES, text, thinned
from evomerge.results import Results

MOST_POINTS = 1000
CHECKPOINTS = 100  # evaluations at which the hypervolume is computed
MOST_OBJECTIVES = 6  # its cost grows exponentially with the objectives
SCORE, VOLUME = "best score so far", "hypervolume"


@dataclass(frozen=True)
class _Course:
    """The evaluations of one search in the order in which they came back.

    Attributes:
        values: (evaluations, objectives) float64, more is better, each on the common scale of the first
            search; NaN for failures.
        numbers: (evaluations,) float64, their weighted mean.
        seconds: (evaluations,) float64 since the search began.
    """

    name: str
    values: np.ndarray
    numbers: np.ndarray
    seconds: np.ndarray


def progress_figure(
    results: Results,
    others: Sequence[Results] = (),
    *,
    columns: int = 2,
    time_axis: bool = False,
    over_time: bool = False,
) -> go.Figure:
    """Draw the best score so far and the hypervolume against evaluations, for a search and those compared with it.

    The score is the one that the search maximises: the weighted mean of the objectives on the common scales of the
    first search. The hypervolume uses the same scale, with the worst seeds as reference.
    Answers from the record are not counted, failures are.

    Args:
        results: the search.
        others: searches with the same objectives, such as the random search with equal budget.
        columns: 2 puts the panels side by side, 1 one above the other.
        time_axis: write the hours of the first search above the panels as well.
        over_time: draw against the hours since each search began, pauses included, not against evaluations.

    Raises:
        ValueError: a compared search has other objectives.
    """
    courses = [_course(each, results) for each in (results, *others)]
    volume = 1 < len(results.objectives) <= MOST_OBJECTIVES
    rows, columns = (1, 1 + volume) if columns > 1 else (1 + volume, 1)
    titles = [SCORE, VOLUME][: 1 + volume]
    gaps = {"horizontal_spacing": 0.09, "vertical_spacing": 0.2}
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=titles, **gaps)
    place = _hours if over_time else _evaluations
    _scatter_of(figure, courses[0], place)
    reference = _worst_seeds(results)
    for position, course in enumerate(courses):
        line = {"color": SEARCH_LINES[position % 4], "dash": SEARCH_DASHES[position % 4], "width": 2.5}
        about = {"mode": "lines", "line": line, "name": text(course.name), "legendgroup": course.name}
        x, y = _best_so_far(course)
        figure.add_scatter(x=place(course, x), y=y, line_shape="hv", **about, row=1, col=1)
        if volume and len(course.values):
            x, y = _hypervolumes(course, reference)
            figure.add_scatter(x=place(course, x), y=y, showlegend=False, **about, row=rows, col=columns)
    _lay_out(figure, rows=rows, title="hours" if over_time else "evaluations")
    if time_axis and len(courses[0].seconds):
        _add_hours(figure, courses[0])
    return figure


def _course(search: Results, scale: Results) -> _Course:
    if search.chooser.names != scale.chooser.names:
        raise ValueError(
            f"search {search.record.name!r} has the objectives {', '.join(search.chooser.names)}, "
            f"{scale.record.name!r} has {', '.join(scale.chooser.names)}: they cannot be compared"
        )
    known, rows = search.candidates.evaluations, search.fresh["search"]
    values = np.where(known.stopped[rows, None], np.nan, known.values[rows]) * search.signs
    preference = scale.chooser.preference
    scaled = preference.scaled(values)
    return _Course(
        name=search.record.name,
        values=scaled,
        numbers=scaled @ preference.weights / preference.weights.sum(),
        seconds=known.created[rows] - search.record.row.created,
    )


def _worst_seeds(results: Results) -> np.ndarray:
    values = results.candidates.values["search"][results.candidates.numbers_of("seed")] * results.signs
    measured = results.chooser.preference.scaled(values[np.isfinite(values).all(axis=1)])
    return np.asarray(measured.min(axis=0)) if len(measured) else np.zeros(len(results.objectives))


def _best_so_far(course: _Course) -> tuple[np.ndarray, np.ndarray]:
    """Evaluations at which the best score rose, with the score; the last evaluation closes the line."""
    best = np.fmax.accumulate(course.numbers) if len(course.numbers) else course.numbers
    rose = np.flatnonzero(np.diff(best, prepend=-np.inf) > 0)
    rose = rose[np.isfinite(best[rose])]
    kept = np.unique([*rose, len(best) - 1]).astype(int) if len(rose) else rose
    return kept + 1, best[kept]


def _hypervolumes(course: _Course, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = thinned(len(course.values), CHECKPOINTS)
    kept = np.zeros((0, course.values.shape[1]))
    volumes = []
    for first, last in zip([-1, *at[:-1]], at, strict=True):
        fresh = course.values[first + 1 : last + 1]
        kept = np.concatenate([kept, fresh[np.isfinite(fresh).all(axis=1)]])
        kept = kept[pareto.front(kept)]
        volumes.append(pareto.hypervolume(kept, reference))
    return at + 1, np.array(volumes)


def _evaluations(_course: _Course, numbers: np.ndarray) -> np.ndarray:
    return numbers


def _hours(course: _Course, numbers: np.ndarray) -> np.ndarray:
    return np.asarray(course.seconds[numbers - 1] / 3600.0)


def _scatter_of(figure: go.Figure, course: _Course, place: Callable[[_Course, np.ndarray], np.ndarray]) -> None:
    """Every candidate's own score, so that one sees how the search narrows down."""
    kept = thinned(len(course.numbers), MOST_POINTS)
    figure.add_scatter(
        x=place(course, kept + 1),
        y=course.numbers[kept],
        mode="markers",
        marker={"size": 3, "color": GREY},
        opacity=0.5,
        name=f"each evaluation of {text(course.name)}",
        hoverinfo="skip",
        row=1,
        col=1,
    )


def _lay_out(figure: go.Figure, *, rows: int, title: str) -> None:
    figure.update_layout(height=340 if rows == 1 else 620, hovermode="x unified")
    figure.update_xaxes(title_text=title, rangemode="tozero")
    figure.update_yaxes(tickformat=".2f")
    if rows == 2:
        figure.update_xaxes(title_text=None, row=1)
        figure.update_layout(legend_y=-0.1)


def _add_hours(figure: go.Figure, course: _Course) -> None:
    """A second axis above the first panel: wall time since the search began, pauses included."""
    ticks = thinned(len(course.seconds), 5)
    longest = course.seconds[-1]
    unit, size = next((u, s) for u, s in (("h", 3600.0), ("min", 60.0), ("s", 1.0)) if longest >= 2 * s or s == 1.0)
    axis = {
        "overlaying": "x",
        "matches": "x",
        "side": "top",
        "tickvals": ticks + 1,
        "ticktext": [f"{course.seconds[i] / size:.2g} {unit}" for i in ticks],
        "showgrid": False,
        "tickfont": {"size": 10},
    }
    # An axis is drawn only if something lies on it.
    figure.add_scatter(x=ticks + 1, y=[None] * len(ticks), xaxis="x9", yaxis="y", showlegend=False, hoverinfo="skip")
    figure.update_layout(xaxis9=axis, margin_t=54)
    figure.update_annotations(yshift=18)
