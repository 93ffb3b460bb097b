"""Plotly figures of a search, as pure functions of its `Results`. The report and the dashboard draw with them.

The figures carry no colours of page or text: set ``figure.layout.template = template(dark=...)`` before showing one.
"""

from evomerge.figures.agreement import agreement_figure
from evomerge.figures.costs import costs_figure
from evomerge.figures.front import front_figure
from evomerge.figures.inspection import inspection_figure
from evomerge.figures.niches import niches_figure
from evomerge.figures.parallel import parallel_figure
from evomerge.figures.progress import progress_figure
from evomerge.figures.recipe import recipe_figure
from evomerge.figures.scores import test_figure
from evomerge.figures.space import space_figure
from evomerge.figures.theme import template

__all__ = [
    "agreement_figure",
    "costs_figure",
    "front_figure",
    "inspection_figure",
    "niches_figure",
    "parallel_figure",
    "progress_figure",
    "recipe_figure",
    "space_figure",
    "template",
    "test_figure",
]
