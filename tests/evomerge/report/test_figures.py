"""The figures show what the record says, once, and never mix splits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.figures import (
    front,
    front_figure,
    parallel,
    parallel_figure,
    progress_figure,
    recipe_figure,
    template,
)
from evomerge.figures import (
    test_figure as scores_figure,
)
from evomerge.figures.mosaic import mosaic_figure
from evomerge.figures.path import path_figure
from evomerge.figures.theme import STYLES, thinned
from evomerge.results import JOINT
from search_spaces.operators import DareTies, Linear, Slerp, TaskArithmetic
from search_spaces.recipe import Block, Blocks, Hop, PathBody, Recipe, Source
from search_spaces.tiles import Chromosome, MosaicBody

pytest.importorskip("evaluators.statistics")
SOURCES = tuple(Source(path=f"models/{name}") for name in ("base", "a", "b"))
NAMES = ("base", "a", "b")


def trace(figure: go.Figure, name: str) -> Any:
    """The one trace with this name in the legend."""
    (found,) = [t for t in figure.data if t.name == name]
    return found


def search_points(figure: go.Figure) -> list[tuple[float, float]]:
    """Markers of scores on search documents."""
    traces = [t for t in figure.data if (t.legendgroup or "").startswith("search ") and "markers" in t.mode]
    return [(x, y) for t in traces for x, y in zip(t.x, t.y, strict=True)]


def test_front_shows_every_measured_candidate_once_and_no_failed_one(finished):
    results = finished.results
    first, second = results.chooser.names[:2]
    expected = [c.values("search", (first, second)) for c in results.candidates if c.state == "measured"]
    drawn = search_points(front_figure(results))
    assert any(c.state == "failed" for c in results.candidates)
    np.testing.assert_allclose(sorted(drawn), sorted(map(tuple, expected)), atol=1e-6)


def test_front_says_how_many_points_it_leaves_out(finished, monkeypatch):
    monkeypatch.setattr(front, "MOST_POINTS", 10)
    names = [t.name for t in front_figure(finished.results).data]
    assert any(n and n.startswith("measured (10 of ") for n in names)


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(2, 300))
def test_thinned_keeps_both_ends_and_no_more_than_asked(count, most):
    kept = thinned(count, most)
    assert len(kept) == min(count, most) == len(set(kept.tolist()))
    if count:
        assert kept[0] == 0 and kept[-1] == count - 1


def test_splits_have_symbols_of_their_own_and_their_own_numbers(finished):
    results = finished.results
    figure = front_figure(results)
    search = {t.marker.symbol for t in figure.data if (t.legendgroup or "").startswith("search ") and t.marker.symbol}
    test, validation = trace(figure, "test documents"), trace(figure, "validation documents")
    assert len({test.marker.symbol, validation.marker.symbol} | search) == len(search) + 2
    names = results.chooser.names
    measured = [c for c in results.candidates if c.state == "measured"]
    for drawn, split in ((test, "test"), (validation, "validation")):
        values = [c.values(split, names) for c in measured if c.values(split, names) is not None]
        np.testing.assert_allclose(drawn.customdata, values, atol=1e-6)
        np.testing.assert_allclose(drawn.x, np.array(values)[:, 0], atol=1e-6)


def test_roles_have_different_symbols_and_colors():
    marked = [STYLES[role] for role in STYLES if role not in ("candidate", "front")]
    assert len({style.symbol for style in marked}) == len(marked)
    assert len({style.color for style in marked}) == len(marked)


@pytest.mark.parametrize("directions", list(itertools.product(("maximize", "minimize"), repeat=2)))
def test_joined_front_is_dominated_by_nobody(make_search, directions):
    tasks = ("gsm8k_ja", "code_small")
    objectives = [{"task": t, "direction": d} for t, d in zip(tasks, directions, strict=True)]
    search = make_search(objectives=objectives)
    search.add_seeds()
    search.add_candidates(40)
    figure = front_figure(search.results)
    (line,) = [t for t in figure.data if t.mode == "lines" and t.legendgroup == "search front"]
    signs = np.array([1.0 if d == "maximize" else -1.0 for d in directions])
    joined = np.column_stack([line.x, line.y]) * signs
    everybody = np.array(search_points(figure)) * signs
    for point in joined:
        better = (everybody >= point - 1e-6).all(axis=1) & (everybody > point + 1e-6).any(axis=1)
        assert not better.any()
    assert (np.diff(line.x) > 0).all()


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [("nothing/acc", None, "no objective 'nothing/acc'"), ("gsm8k_ja/acc", "gsm8k_ja/acc", "two different")],
)
def test_front_refuses_wrong_axes(finished, x, y, match):
    with pytest.raises(ValueError, match=match):
        front_figure(finished.results, x, y)


def test_front_takes_the_axes_asked_for(finished):
    results = finished.results
    names = results.chooser.names
    assert front_figure(results, names[2], names[1]).layout.xaxis.title.text == names[2]
    assert front_figure(results, y=names[0]).layout.xaxis.title.text == names[1]


def test_front_of_one_objective_is_refused(make_search):
    search = make_search(objectives=[{"task": "gsm8k_ja"}])
    with pytest.raises(ValueError, match="needs two objectives"):
        front_figure(search.results)


def test_parallel_puts_the_best_on_top_whatever_the_direction(make_search):
    objectives = [{"task": "gsm8k_ja"}, {"task": "code_small", "direction": "minimize"}, {"task": "medqa"}]
    search = make_search(objectives=objectives)
    search.add_seeds()
    results = search.results
    figure = parallel_figure(results)
    column = [c.values("search", results.chooser.names)[1] for c in results.candidates]
    best = results.candidates[int(np.argmin(column))]
    heights = {}
    for drawn in figure.data:
        for x, y, label in zip(drawn.x, drawn.y, drawn.text, strict=True):
            if x == 1 and f"<b>{best.label}</b>" in label:
                heights[best.label] = y
    assert heights == {best.label: 1.0}


def test_parallel_says_how_many_lines_it_leaves_out(finished, monkeypatch):
    monkeypatch.setattr(parallel, "MOST_LINES", 3)
    names = [t.name for t in parallel_figure(finished.results).data]
    assert any(n.startswith("measured (3 of ") for n in names)


def test_names_are_only_names(make_search):
    experts = [{"path": f"m/{i}", "name": f"<b>{i}</b>"} for i in range(3)]
    search = make_search(sources={"base": "b", "experts": experts})
    search.add_seeds()
    assert "<b>0</b>" not in trace(front_figure(search.results), "expert").text
    assert "&lt;b&gt;0&lt;/b&gt;" in trace(front_figure(search.results), "expert").text


def test_progress_rises_to_the_best_and_counts_failures(finished, random_search):
    results = finished.results
    figure = progress_figure(results, [random_search.results])
    for name in (results.record.name, random_search.results.record.name):
        score, volume = [t for t in figure.data if t.name == name]
        assert (np.diff(score.y) >= 0).all() and (np.diff(volume.y) >= -1e-9).all()
    score, volume = [t for t in figure.data if t.name == results.record.name]
    searched = [c for c in results.candidates if c.origin != "baseline"]
    assert score.x[-1] == volume.x[-1] == results.spent == len(searched)
    assert score.y[-1] == pytest.approx(max(results.chooser.number(c, "search") for c in searched))
    assert volume.y[-1] > 0


def test_progress_of_one_objective_has_no_hypervolume(make_search):
    search = make_search(objectives=[{"task": "gsm8k_ja"}])
    search.add_seeds()
    assert {t.yaxis for t in progress_figure(search.results).data} <= {None, "y"}


def test_progress_without_evaluations_is_empty(make_search):
    figure = progress_figure(make_search().results)
    assert all(len(t.x) == 0 for t in figure.data)


def test_progress_refuses_other_objectives(finished, make_search):
    other = make_search("other", objectives=[{"task": "law"}])
    with pytest.raises(ValueError, match="search 'other' has the objectives law/acc"):
        progress_figure(finished.results, [other.results])


def test_progress_has_a_time_axis_on_request(finished):
    axis = progress_figure(finished.results, time_axis=True).layout.xaxis9
    assert axis.side == "top" and all(label.endswith(" s") for label in axis.ticktext)
    assert "xaxis9" not in progress_figure(finished.results).layout


def recipe_of(*blocks: Block) -> Recipe:
    return Recipe(sources=SOURCES, body=Blocks(blocks=blocks))


def cells(figure: go.Figure, layers: int) -> dict[tuple[str, str, int], float]:
    """Value by (panel title, model, layer) as drawn."""
    found = {}
    titles = [annotation.text for annotation in figure.layout.annotations]
    for title, drawn in zip(titles, figure.data, strict=True):
        edges = np.array(drawn.x) + 0.5
        for model, row in zip(drawn.y, drawn.z, strict=True):
            for layer in range(layers):
                value = row[int(np.searchsorted(edges, layer, side="right")) - 1]
                if not np.isnan(value):
                    found[title, model, layer] = value
    return found


weights = st.tuples(st.floats(-2, 2), st.floats(-2, 2))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda layers: st.tuples(
            st.just(layers),
            st.lists(
                st.tuples(
                    st.integers(0, layers - 1), st.integers(1, layers), st.sampled_from(["*", "*.mlp.*"]), weights
                ),
                min_size=1,
                max_size=6,
            ),
        )
    )
)
def test_recipe_figure_shows_the_first_block_of_a_group_for_every_layer(case):
    layers, rows = case
    blocks, expected = [], {}
    alone = all(pattern == "*" for _, _, pattern, _ in rows)
    titles = {"*": "weight · all tensors" if alone else "weight · all other tensors", "*.mlp.*": "weight · *.mlp.*"}
    for first, length, pattern, values in rows:
        blocks.append(
            Block(layers=(first, first + length), tensors=(pattern,), operator=TaskArithmetic(weights=values))
        )
        for layer in range(first, min(first + length, layers)):
            for model, value in zip(("a", "b"), values, strict=True):
                expected.setdefault((titles[pattern], model, layer), value)
    assert cells(recipe_figure(recipe_of(*blocks), source_names=NAMES, layers=layers), layers) == expected


def test_recipe_figure_knows_every_parameter():
    recipe = recipe_of(
        Block(layers=(0, 1), operator=DareTies(weights=(0.5, -0.1), densities=(0.2, 0.9))),
        Block(layers=(1, 2), operator=Linear(weights=(0.1, 0.2, 0.7))),
        Block(layers=(2, 3), operator=Slerp(between=(1, 2), t=0.3)),
    )
    drawn = cells(recipe_figure(recipe, source_names=NAMES, layers=3), 3)
    assert drawn["weight · all tensors", "b", 0] == -0.1
    assert drawn["density · all tensors", "a", 0] == 0.2
    assert drawn["weight · all tensors", "base", 1] == 0.1
    assert drawn["t · all tensors", "a to b", 2] == 0.3
    assert len(drawn) == 2 + 2 + 3 + 1


def test_recipe_figure_joins_equal_layers():
    recipe = recipe_of(Block(layers=(0, 32), operator=TaskArithmetic(weights=(0.5, 0.5))))
    figure = recipe_figure(recipe, source_names=NAMES, layers=32)
    assert list(figure.layout.xaxis.ticktext) == ["0–31"]


def test_recipe_figure_wants_a_name_per_source():
    recipe = recipe_of(Block(layers=(0, 1), operator=TaskArithmetic(weights=(0.5, 0.5))))
    with pytest.raises(ValueError, match="3 sources, got 2 names"):
        recipe_figure(recipe, source_names=("a", "b"), layers=1)


def test_scores_figure_shows_the_table(finished, random_search):
    results, others = finished.results, [random_search.results]
    figure = scores_figure(results, others)
    rows = results.table(others)
    names = [JOINT, *results.chooser.names]
    assert len(figure.data) == len(rows) * len(names)
    for (name, row), drawn in zip(itertools.product(names, rows), figure.data, strict=True):
        estimate = row.estimates[name]
        assert drawn.x == (estimate.value,) and drawn.y == (row.label,)
        assert drawn.x[0] + drawn.error_x.array[0] == pytest.approx(estimate.high)
        assert drawn.x[0] - drawn.error_x.arrayminus[0] == pytest.approx(estimate.low)


def luminance(color: str) -> float:
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable(dark):
    layout = template(dark=dark).layout
    low, high = sorted((luminance(layout.font.color), luminance(layout.paper_bgcolor)))
    assert (high + 0.05) / (low + 0.05) > 7  # WCAG AAA


def test_joint_of_opposite_directions_is_scaled_to_the_seeds(make_search):
    search = make_search(objectives=[{"task": "gsm8k_ja"}, {"task": "law", "metric": "loss", "direction": "minimize"}])
    search.add_seeds()
    results = search.results
    best = max(results.candidates, key=lambda c: results.chooser.number(c, "search"))
    joint = results.estimate(best, "search")[JOINT]
    assert results.joint_is_scaled
    assert joint.value == pytest.approx(results.chooser.number(best, "search"))
    assert joint.low < joint.value < joint.high
    one, other = (results.estimate(c, "search")[JOINT].value for c in results.candidates[:2])
    assert (one < other) == (
        results.chooser.number(results.candidates[0], "search")
        < results.chooser.number(results.candidates[1], "search")
    )


def test_mosaics_are_drawn_segment_by_segment():
    one = Chromosome(
        name="attention", tensors=("*.attn.*",), boundaries=(0, 2, 9), coefficients=((1.0, 0.0), (-0.2, 1.2))
    )
    rest = Chromosome(name="rest", tensors=("*",), boundaries=(0, 4), coefficients=((0.5, 0.5),))
    figure = mosaic_figure(MosaicBody(tile=8, chromosomes=(one, rest)), source_names=("base", "expert"))
    first, second = figure.data
    assert list(first.x) == [0, 2, 9]
    assert np.array_equal(first.z, [[1.0, -0.2], [0.0, 1.2]])
    assert list(second.y) == ["base", "expert"]
    assert figure.layout.coloraxis.cmin == -1.2, "negative coefficients have a colour of their own"


def test_paths_are_drawn_hop_by_hop():
    hops = (Hop(slot=0, layer=0), Hop(slot=1, layer=1, scale=0.5), Hop(slot=0, layer=3))
    merge = Blocks(blocks=(Block(layers=(0, 4), operator=Linear(weights=(0.5, 0.5))),))
    recipe = Recipe(sources=SOURCES[:2], body=PathBody(slots=(1, merge), hops=hops))
    line, first, second, scales = recipe_figure(recipe, source_names=("base", "<expert>"), layers=4).data
    assert list(line.y) == [0, 1, 3]
    assert (first.name, list(first.x), list(first.y)) == ("&lt;expert&gt;", [1, 3], [0, 3])
    assert (second.name, list(second.x), list(second.y)) == ("merge", [2], [1])
    assert first.marker.symbol != second.marker.symbol
    assert [scales.base + y for y in scales.y] == [1.0, 0.5, 1.0]
    plain = PathBody(slots=(merge, merge), hops=(Hop(slot=0, layer=0), Hop(slot=1, layer=0)))
    assert [trace.name for trace in path_figure(plain, source_names=("base", "x")).data[1:]] == ["merge", "merge-2"]
