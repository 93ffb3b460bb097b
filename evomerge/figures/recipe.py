"""A recipe as heat maps: one panel per tensor group and parameter, layers across, models down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evomerge.figures.mosaic import SIGNED, WEIGHTS, mosaic_figure
from evomerge.figures.path import path_figure
from evomerge.figures.theme import text
from search_spaces.operators import Operator
from search_spaces.parameter_space import TENSOR_GROUPS
from search_spaces.recipe import Blocks, PathBody, Recipe
from search_spaces.tiles import MosaicBody

# From pale to a colour of Okabe and Ito, as those of weights do.
SHARES = [[0.0, "#f0f8f4"], [0.5, "#4cbf9c"], [1.0, "#00553d"]]
ROW_PIXELS, PANEL_PIXELS = 30, 66


class _Cell(NamedTuple):
    parameter: str
    model: str
    value: float


class _Panel(NamedTuple):
    """One heat map: (models, layers) float64, NaN where the recipe says nothing."""

    tensors: tuple[str, ...]
    parameter: str
    models: tuple[str, ...]
    values: np.ndarray


def recipe_figure(recipe: Recipe, *, source_names: Sequence[str], layers: int) -> go.Figure:
    """Draw weights, densities and interpolation parameters of a recipe of blocks, the coefficients of a mosaic, or the
    layers of a path.

    Neighbouring layers with the same numbers share a cell, as wide as they are many.

    Args:
        recipe: with any body.
        source_names: one per source of the recipe, in its order.
        layers: number of layers of the models.

    Raises:
        ValueError: there are not as many names as sources.
    """
    if len(source_names) != len(recipe.sources):
        raise ValueError(f"the recipe has {len(recipe.sources)} sources, got {len(source_names)} names")
    if isinstance(recipe.body, MosaicBody):
        return mosaic_figure(recipe.body, source_names=source_names)
    if isinstance(recipe.body, PathBody):
        return path_figure(recipe.body, source_names=source_names)
    panels = _panels(recipe.body, recipe.experts, source_names, layers)
    edges = _edges(panels, layers)
    sizes = [max(len(panel.models), 1) for panel in panels]
    height = sum(ROW_PIXELS * size + PANEL_PIXELS for size in sizes) + 40
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        subplot_titles=[f"{panel.parameter} · {_group_name(panel.tensors, panels)}" for panel in panels],
        row_heights=[ROW_PIXELS * size for size in sizes],
        vertical_spacing=min(PANEL_PIXELS / height, 1.0 / max(len(panels), 2)),
    )
    parameters = dict.fromkeys(panel.parameter for panel in panels)
    axis_of = {name: "coloraxis" if i == 0 else f"coloraxis{i + 1}" for i, name in enumerate(parameters)}
    for row, panel in enumerate(panels, start=1):
        _add_panel(figure, panel, edges, row=row, color_axis=axis_of[panel.parameter])
    for name, axis in axis_of.items():
        figure.update_layout({axis: _colors(name, [p for p in panels if p.parameter == name])})
    figure.update_xaxes(
        tickvals=_centres(edges), ticktext=_range_names(edges), showgrid=False, zeroline=False, ticks=""
    )
    figure.update_xaxes(title_text="layers", row=len(panels))
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    figure.update_annotations(x=0, xanchor="left")
    figure.update_layout(height=height)
    return figure


def _cells(operator: Operator, names: Sequence[str], experts: Sequence[int]) -> Iterator[_Cell]:
    between = getattr(operator, "between", None)
    everyone = f"{names[between[0]]} to {names[between[1]]}" if between else "all experts"
    models = range(len(names)) if operator.per_source else experts
    for spec in operator.knobs:
        value = getattr(operator, spec.field)
        if not spec.per_expert:
            yield _Cell(spec.name, everyone, value)
            continue
        for model, number in zip(models, value, strict=True):
            yield _Cell(spec.name, names[model], number)


def _panels(body: Blocks, experts: Sequence[int], names: Sequence[str], layers: int) -> list[_Panel]:
    """One per tensor group and parameter; where two blocks of a group cover a layer, the first decides it."""
    tables: dict[tuple[tuple[str, ...], str], dict[str, np.ndarray]] = {}
    decided: dict[tuple[str, ...], set[int]] = {}
    for block in body.blocks:
        free = [
            i
            for i in range(block.layers[0], min(block.layers[1], layers))
            if i not in decided.setdefault(block.tensors, set())
        ]
        decided[block.tensors].update(free)
        for cell in _cells(block.operator, names, experts):
            table = tables.setdefault((block.tensors, cell.parameter), {})
            table.setdefault(cell.model, np.full(layers, np.nan))[free] = cell.value
    order = {name: i for i, name in enumerate(names)}
    panels = []
    for (tensors, parameter), rows in tables.items():
        models = tuple(sorted(rows, key=lambda name: order.get(name, len(order))))
        panels.append(_Panel(tensors, parameter, models, np.stack([rows[model] for model in models])))
    return panels


def _edges(panels: Sequence[_Panel], layers: int) -> list[int]:
    """Layers at which any panel changes, with both ends."""
    stacked = np.concatenate([panel.values for panel in panels])
    before, after = stacked[:, :-1], stacked[:, 1:]
    changes = ~((before == after) | (np.isnan(before) & np.isnan(after))).all(axis=0)
    return [0, *(np.flatnonzero(changes) + 1).tolist(), layers]


def _centres(edges: Sequence[int]) -> list[float]:
    return [(a + b - 1) / 2 for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _range_names(edges: Sequence[int]) -> list[str]:
    spans = list(zip(edges[:-1], edges[1:], strict=True))
    every = max(1, round(len(spans) / 12))  # so many labels fit
    names = [f"{a}" if b == a + 1 else f"{a}–{b - 1}" for a, b in spans]
    return [name if i % every == 0 else "" for i, name in enumerate(names)]


def _group_name(tensors: tuple[str, ...], panels: Sequence[_Panel]) -> str:
    known = {patterns: name for name, patterns in TENSOR_GROUPS.items()}
    if tensors == ("*",):
        return "all tensors" if all(panel.tensors == ("*",) for panel in panels) else "all other tensors"
    return text(known.get(tensors, ", ".join(tensors)))


def _add_panel(figure: go.Figure, panel: _Panel, edges: Sequence[int], *, row: int, color_axis: str) -> None:
    values = panel.values[:, list(edges[:-1])]
    spans = [f"layers {a} to {b - 1}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    figure.add_heatmap(
        x=[edge - 0.5 for edge in edges],
        y=[text(model) for model in panel.models],
        z=values,
        customdata=np.array([spans] * len(panel.models)),
        coloraxis=color_axis,
        texttemplate="%{z:.2f}",  # without a font size Plotly leaves out what does not fit
        hovertemplate=f"<b>%{{y}}</b><br>%{{customdata}}<br>{panel.parameter}: %{{z:.4f}}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=2,
        row=row,
        col=1,
    )


def _colors(parameter: str, panels: Sequence[_Panel]) -> dict[str, object]:
    values = np.concatenate([panel.values.ravel() for panel in panels])
    if parameter != "weight":
        return {"colorscale": SHARES, "cmin": 0.0, "cmax": max(1.0, float(np.nanmax(values))), "showscale": False}
    top = max(float(np.nanmax(np.abs(values))), 1e-9)
    if np.nanmin(values) < 0.0:
        return {"colorscale": SIGNED, "cmin": -top, "cmax": top, "showscale": False}
    return {"colorscale": WEIGHTS, "cmin": 0.0, "cmax": top, "showscale": False}
