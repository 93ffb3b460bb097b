"""One self-contained HTML file about a search: scores, front, progress, recipe, costs, and how to rebuild it.

Nothing is loaded from anywhere: Plotly is inlined once, and a content security policy forbids every request.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from evomerge import figures, report_facts
from evomerge.atomic import replacing
from evomerge.results import Results
from evomerge.targets import Place, local

MOST_PAIRS = 10  # pairs of objectives with a figure of their own: each adds up to 150 kB


def write_report(results: Results, to: Place, *, others: Sequence[Results] = ()) -> None:
    """Write the report on a search, finished or not, to the file ``to``; an older one is replaced at once.

    Args:
        results: the search.
        to: HTML file, a path or an fsspec URL; its folder is made if it is not there.
        others: searches with the same objectives to compare with, such as the random search.

    Raises:
        ValueError: a compared search has other objectives.
        OSError: the file cannot be written.
    """
    drawn = _figures(results, others)
    page = _template().render(
        **report_facts.facts(results, others),
        pairs=[{"id": name, "title": f"{x} × {y}"} for name, x, y in _pairs(results)],
        parallel="parallel" in drawn,
        progress="progress" in drawn,
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - the library's own file
        figures=Markup(_json(drawn)),  # noqa: S704 - holds no "<"
    )
    with local(to, replace=True) as place, replacing(place, mode=0o644) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string((files("evomerge") / "report.html.j2").read_text(encoding="utf-8"))


def _pairs(results: Results) -> list[tuple[str, str, str]]:
    """Identifier and names of each pair of objectives that gets a figure; the first pairs where there are too many."""
    if not results.front:
        return []
    pairs = itertools.islice(itertools.combinations(results.chooser.names, 2), MOST_PAIRS)
    return [(f"front-{number}", x, y) for number, (x, y) in enumerate(pairs)]


def _figures(results: Results, others: Sequence[Results]) -> dict[str, dict[str, go.Figure]]:
    """Figures by name, each for a wide page and, where that differs, for a narrow one."""
    drawn = {name: {"wide": figures.front_figure(results, x, y)} for name, x, y in _pairs(results)}
    if results.front and len(results.objectives) > 2:
        drawn["parallel"] = {"wide": figures.parallel_figure(results)}
    if results.front:
        drawn["progress"] = {
            "wide": figures.progress_figure(results, others),
            "narrow": figures.progress_figure(results, others, columns=1),
        }
    if results.table(others):
        drawn["scores"] = {
            "wide": figures.test_figure(results, others),
            "narrow": figures.test_figure(results, others, columns=1),
        }
    if chosen := report_facts.chosen(results):
        names = [source.short_name for source in (results.file.sources.base, *results.file.sources.experts)]
        layers = results.record.row.plan["layers"]
        drawn["recipe"] = {"wide": figures.recipe_figure(chosen.recipe, source_names=names, layers=layers)}
    if results.inspection is not None:
        drawn["inspection"] = {"wide": figures.inspection_figure(results.inspection)}
    return drawn


def _json(drawn: dict[str, dict[str, go.Figure]]) -> str:
    """Return the figures and both templates as JSON that can stand inside a script element."""
    value: dict[str, Any] = {
        "figures": {name: {size: _plain(figure) for size, figure in each.items()} for name, each in drawn.items()},
        "light": figures.template(dark=False).to_plotly_json(),
        "dark": figures.template(dark=True).to_plotly_json(),
    }
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _plain(figure: go.Figure) -> dict[str, Any]:
    figure.layout.template = None  # the page sets the one that fits its colours
    plain: dict[str, Any] = json.loads(figure.to_json())
    return plain
