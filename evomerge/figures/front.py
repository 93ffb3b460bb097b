"""The measured candidates of a search in the plane of two objectives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from evaluators.objective_kinds import AnyObjective
from evomerge.archives import pareto
from evomerge.figures.candidates import shown
from evomerge.figures.theme import GREY, STYLES, hover_lines, objective_label, of_which, style, text
from evomerge.records import Split
from evomerge.results import Results

MOST_POINTS = 1500  # grey points beyond this add bytes and no picture
SPLIT_SYMBOLS: dict[Split, str] = {"validation": "circle-open", "test": "x-thin-open"}


def front_figure(results: Results, x: str | None = None, y: str | None = None) -> go.Figure:
    """Draw every measured candidate by two objectives, the front joined, references and winner marked.

    Filled symbols are scores on search documents; open circles are finalists on validation documents, crosses are
    models on test documents. A front of more than two objectives is joined where it is one of these two alone.

    Args:
        results: the search.
        x: name of the objective to the right; the first by default.
        y: name of the objective upwards; the first that is not ``x`` by default.

    Raises:
        ValueError: there is only one objective, or the names are unknown or equal.
    """
    across, up = chosen_axes(results, (x, y))
    figure = go.Figure()
    points = shown(results, MOST_POINTS)
    roles = {number: role for role, number in points.marked}
    plane = _Plane(results, across, up)
    name = "measured" + of_which(len(points.others), points.all_others)
    plane.points(figure, points.others, "candidate", name, opacity=0.5)
    _join(figure, results, across, up)
    plane.points(figure, points.front, "front", "front")
    for role in dict.fromkeys(roles.values()):
        chosen = [number for number, mine in roles.items() if mine == role]
        plane.points(figure, chosen, role, role, labelled=True)
    for split in SPLIT_SYMBOLS:
        plane.remeasured(figure, split, roles)
    figure.update_layout(
        height=520,
        xaxis_title=objective_label(across),
        yaxis_title=objective_label(up),
        hovermode="closest",
    )
    return figure


def chosen_axes(results: Results, names: Sequence[str | None]) -> list[AnyObjective]:
    """Return the objectives with ``names``, the first that is not taken for each None.

    Raises:
        ValueError: there are fewer objectives than names, or the names are unknown or equal.
    """
    known = {objective.name: objective for objective in results.objectives}
    if len(known) < len(names):
        numbers = {1: "one", 2: "two", 3: "three"}
        raise ValueError(
            f"a front needs {numbers[len(names)]} objectives, search {results.record.name!r} has {numbers[len(known)]}"
        )
    given = [name for name in names if name is not None]
    for name in given:
        if name not in known:
            raise ValueError(f"no objective {name!r} (there: {', '.join(known)})")
        if given.count(name) > 1:
            raise ValueError(f"two axes are {name!r}; give two different objectives")
    free = iter(name for name in known if name not in given)
    return [known[next(free) if name is None else name] for name in names]


class _Plane:
    """Points by two objectives; their hover text shows all of them."""

    def __init__(self, results: Results, across: AnyObjective, up: AnyObjective) -> None:
        self._results = results
        self._names = results.chooser.names
        self._columns = self._names.index(across.name), self._names.index(up.name)

    def points(
        self,
        figure: go.Figure,
        numbers: Sequence[int],
        role: str,
        name: str,
        *,
        labelled: bool = False,
        opacity: float = 1.0,
    ) -> None:
        """Add candidates by their scores on search documents."""
        if not numbers:
            return
        values = self._values(numbers, "search")
        color, symbol, size = style(role)
        across, up = self._columns
        outline = {"width": 1, "color": "rgba(255,255,255,0.7)"} if role != "candidate" else {"width": 0}
        figure.add_scatter(
            x=values[:, across],
            y=values[:, up],
            customdata=values,
            ids=[str(number) for number in numbers],
            text=[self._title(number, role) for number in numbers],
            mode="markers+text" if labelled else "markers",
            texttemplate=("<b>winner</b>" if role == "winner" else "%{text}") if labelled else None,
            textposition="top center",
            marker={"color": color, "symbol": symbol, "size": size, "line": outline},
            opacity=opacity,
            name=text(name),
            legendgroup=f"search {role}",
            hovertemplate=hover_lines(self._names).replace("</b>", "</b>, search documents"),
            cliponaxis=False,
        )

    def remeasured(self, figure: go.Figure, split: Split, roles: dict[int, str]) -> None:
        """Add what was measured on validation or test documents, tied to its score on search documents."""
        columns = self._results.candidates
        numbers = np.intersect1d(columns.measured(split), columns.measured("search")).tolist()
        if not numbers:
            return
        values, before = self._values(numbers, split), self._values(numbers, "search")
        across, up = self._columns
        gap = np.full(len(numbers), np.nan)
        figure.add_scatter(
            x=np.column_stack([before[:, across], values[:, across], gap]).ravel(),
            y=np.column_stack([before[:, up], values[:, up], gap]).ravel(),
            mode="lines",
            line={"width": 1, "color": GREY, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=split,
            visible=None if split == "test" else "legendonly",
        )
        if split == "test":
            self._whiskers(figure, numbers, roles)
        colors = [style(roles.get(number, "front")).color for number in numbers]
        figure.add_scatter(
            x=values[:, across],
            y=values[:, up],
            customdata=values,
            ids=[str(number) for number in numbers],
            text=[self._title(number, roles.get(number, "")) for number in numbers],
            mode="markers",
            marker={"color": colors, "symbol": SPLIT_SYMBOLS[split], "size": 10, "line": {"width": 2, "color": colors}},
            name=f"{split} documents",
            legendgroup=split,
            visible=None if split == "test" else "legendonly",
            hovertemplate=hover_lines(self._names).replace("</b>", f"</b>, {split} documents"),
            cliponaxis=False,
        )

    def _whiskers(self, figure: go.Figure, numbers: Sequence[int], roles: dict[int, str]) -> None:
        """Add the 95 % intervals of test scores, a cross of two lines a model."""
        for candidate in self._results.candidates.records(numbers):
            estimates = self._results.estimate(candidate, "test")
            across, up = (estimates[self._names[column]] for column in self._columns)
            figure.add_scatter(
                x=[across.low, across.high, None, across.value, across.value],
                y=[up.value, up.value, None, up.low, up.high],
                mode="lines",
                line={"width": 1.5, "color": style(roles.get(candidate.number, "front")).color},
                opacity=0.6,
                hoverinfo="skip",
                showlegend=False,
                legendgroup="test",
            )

    def _values(self, numbers: Sequence[int], split: Split) -> np.ndarray:
        return np.asarray(self._results.candidates.values[split][list(numbers)], dtype=np.float32)

    def _title(self, number: int, role: str) -> str:
        label = self._results.candidates.label(number)
        return text(f"winner: {label}" if role == "winner" else label)


def _join(figure: go.Figure, results: Results, across: AnyObjective, up: AnyObjective) -> None:
    """Join the front of the two objectives by the border of what it dominates."""
    signs = np.array([across.sign, up.sign])
    rows = [c.values("search", (across.name, up.name)) for c in results.front]
    values = np.array([row for row in rows if row is not None]).reshape(-1, 2)
    kept = values[pareto.front(values * signs)]
    if len(kept) < 2:
        return
    kept = kept[np.argsort(kept[:, 0], kind="stable")]
    figure.add_scatter(
        x=kept[:, 0],
        y=kept[:, 1],
        mode="lines",
        line={"color": STYLES["front"].color, "width": 1.5, "shape": "vh" if across.sign > 0 else "hv"},
        hoverinfo="skip",
        showlegend=False,
        legendgroup="search front",
    )
