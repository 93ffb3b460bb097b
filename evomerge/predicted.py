"""What the surrogates of a MAP search predict, computed from its record. Nothing here was evaluated, and nothing here
is mixed with what was: it has a type, a table and JSON of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from evomerge.archives import pareto
from evomerge.errors import BadSearch
from evomerge.optimizers.map_search import FEWEST_R_SQUARED
from evomerge.optimizers.settings import SURROGATE_KINDS
from evomerge.optimizers.surrogate_front import Surrogates, predicted_front
from evomerge.problem import make_space
from evomerge.results import Results
from search_spaces.genes import Genes, Vector
from search_spaces.recipe import Source


@dataclass(frozen=True)
class Predicted:
    """Surrogates fitted to everything that a search has measured.

    Attributes:
        r_squared: leave-one-out R^2 by objective name.
        genomes: (points, genes) genomes of the predicted front; none where a surrogate is too poor.
        values: (points, objectives) predictions in the metrics' own directions. Not evaluated.
    """

    names: tuple[str, ...]
    r_squared: dict[str, float]
    genomes: Vector
    values: Vector

    @property
    def poor(self) -> list[str]:
        """Objectives whose surrogate is too poor to be used."""
        return [name for name, value in self.r_squared.items() if value < FEWEST_R_SQUARED]

    @property
    def line(self) -> str:
        """R^2 of every objective in words, and what follows where one is poor."""
        text = ", ".join(f"{value:.2f} {name}" for name, value in self.r_squared.items())
        if not self.poor:
            return f"leave-one-out R^2 {text}"
        return f"leave-one-out R^2 {text}: below {FEWEST_R_SQUARED}, so no front is predicted and the design goes on"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types, marked as not evaluated."""
        pairs = zip(self.genomes.tolist(), self.values.tolist(), strict=True)
        points = [{"genome": genome, "predicted": dict(zip(self.names, row, strict=True))} for genome, row in pairs]
        return {"evaluated": False, "r_squared": self.r_squared, "points": points}

    def table(self, search: str) -> Table:
        """Return the predicted front for people, marked as not evaluated."""
        table = Table(
            title=f"Predicted front of {search}: NOT EVALUATED", title_justify="left", caption=Text(self.line)
        )
        for name in self.names:
            table.add_column(Text(f"predicted {name}"), justify="right")
        for row in self.values[np.argsort(-self.values[:, 0])].tolist() if len(self.values) else []:
            table.add_row(*[f"{value:.3f}" for value in row])
        return table


def has_surrogates(results: Results) -> bool:
    """Whether the search uses surrogates, and has measured enough to fit them."""
    return results.file.optimizer.kind in SURROGATE_KINDS and len(_known(results)[1]) > len(_genes(results)) + 1


def predict(results: Results, *, front: bool = True) -> Predicted:
    """Fit the surrogates of a MAP search again; with ``front`` find the front that they predict.

    Raises:
        BadSearch: the search uses none, or has measured too little.
    """
    _check(results)
    genes, (unit, values) = _genes(results), _known(results)
    surrogates = Surrogates.fitted(unit, values)
    names = results.chooser.names
    r_squared = dict(zip(names, surrogates.r_squared.tolist(), strict=True))
    points = np.zeros((0, len(genes)))
    if front and min(r_squared.values()) >= FEWEST_R_SQUARED:
        found = predicted_front(surrogates, unit, np.random.default_rng(results.file.optimizer.seed))
        points = found[pareto.front(surrogates.predict(found)[0])]
    signs = np.array([objective.sign for objective in results.objectives])
    predicted = surrogates.predict(points)[0] * signs
    return Predicted(names, r_squared, genes.from_unit(points), predicted)


@dataclass(frozen=True)
class LeftOut:
    """Every measured candidate beside what surrogates predict for it from all the others.

    Attributes:
        numbers: (points,) of the candidates.
        measured, predicted: (points, objectives) in the metrics' own directions.
        r_squared: by objective name.
    """

    numbers: list[int]
    measured: Vector
    predicted: Vector
    r_squared: dict[str, float]


def left_out(results: Results) -> LeftOut:
    """Return leave-one-out predictions of the surrogates of a MAP search.

    Raises:
        BadSearch: the search uses none, or has measured too little.
    """
    _check(results)
    unit, values = _known(results)
    surrogates = Surrogates.fitted(unit, values)
    names = results.chooser.names
    predicted = values - np.column_stack([surrogate.errors for surrogate in surrogates.each])
    last = {c.genome: c.number for c in results.candidates if c.genome is not None and c.state == "measured"}
    r_squared = dict(zip(names, surrogates.r_squared.tolist(), strict=True))
    return LeftOut(list(last.values()), values * results.signs, predicted * results.signs, r_squared)


def _check(results: Results) -> None:
    name = results.record.name
    if results.file.optimizer.kind not in SURROGATE_KINDS:
        kinds = " or ".join(SURROGATE_KINDS)
        raise BadSearch(f"search {name!r} has no surrogates: its optimizer is {results.optimizer}, not {kinds}")
    if not has_surrogates(results):
        raise BadSearch(f"search {name!r} has measured too little to predict a front; run it first")


def _genes(results: Results) -> Genes:
    plan = results.record.row.plan
    sources = tuple(Source.model_validate(source) for source in plan["sources"])
    return make_space(results.file, sources, layers=plan["layers"]).genes


def _known(results: Results) -> tuple[Vector, Vector]:
    """(points, genes) in the unit cube and (points, objectives) maximised values of all that the surrogates see."""
    genes, values = _genes(results), {}
    for candidate in results.candidates:
        measured = results.chooser.maximised(candidate, "search")
        if candidate.genome is not None and measured is not None:
            values[candidate.genome] = measured
    points = np.array([genome.values for genome in values]).reshape(len(values), len(genes))
    return (points - genes.low) / (genes.high - genes.low), np.array(list(values.values()))
