"""Which point of a front is wanted: the `preference` section of a search file, and `evomerge export --prefer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field

from evaluators.objective_kinds import AnyObjective
from evomerge.errors import BadSearch
from evomerge.optimizers.preference import Aim, Chebyshev, Constraint, Preference, WeightedMean
from search_spaces.canonical import Frozen

UNNAMED_WEIGHT = 1e-9  # of objectives that --prefer leaves out where it names weights
CHEBYSHEV = "chebyshev"


class WeightedSettings(Frozen):
    """The weighted mean of the objectives."""

    kind: Literal["weighted"] = "weighted"


class ChebyshevSettings(Frozen):
    """The objective that falls shortest, by weight, of the best there can be."""

    kind: Literal["chebyshev"] = "chebyshev"


class ConstraintSettings(Frozen):
    """The weighted mean among the candidates that keep the limits (epsilon-constraint)."""

    kind: Literal["constraint"] = "constraint"
    limits: dict[str, float] = Field(
        min_length=1, description="by task or task/metric: the least that is acceptable, the most where less is better"
    )


PreferenceSettings: TypeAlias = Annotated[
    WeightedSettings | ChebyshevSettings | ConstraintSettings, Field(discriminator="kind")
]


def make_preference(objectives: Sequence[AnyObjective], settings: PreferenceSettings | None) -> Preference:
    """Return the preference among ``objectives``; their weighted mean if ``settings`` is None."""
    return Preference(np.array([objective.weight for objective in objectives]), aim_of(objectives, settings))


def aim_of(objectives: Sequence[AnyObjective], settings: PreferenceSettings | None) -> Aim:
    """Return what ``settings`` aims at, in the terms of maximised values.

    Raises:
        ValueError: a limit for an objective that is not there.
    """
    match settings:
        case ChebyshevSettings():
            return Chebyshev()
        case ConstraintSettings(limits=limits):
            check_names(limits, objectives)
            found = [limits.get(objective.name, limits.get(objective.title)) for objective in objectives]
            pairs = zip(objectives, found, strict=True)
            return Constraint(tuple(-np.inf if limit is None else o.sign * limit for o, limit in pairs))
    return WeightedMean()


def check_names(names: Sequence[str] | dict[str, float], objectives: Sequence[AnyObjective]) -> None:
    """Refuse a name that is neither a task nor an objective.

    Raises:
        ValueError: which, and which there are.
    """
    known = dict.fromkeys([objective.title for objective in objectives] + [objective.name for objective in objectives])
    for name in names:
        if name not in known:
            raise ValueError(f"no objective {name!r} (there: {', '.join(known)})")


def parse_prefer(text: str, objectives: Sequence[AnyObjective]) -> tuple[tuple[AnyObjective, ...], PreferenceSettings]:
    """Return the objectives with the weights, and the preference, that ``--prefer TEXT`` asks for.

    Parts are separated by commas: ``task=weight``, ``task>=least`` (``task<=most`` where less is better), `chebyshev`.
    Where weights are named, the objectives without one hardly count; where none is, those of the search do.

    Raises:
        BadSearch: a part that is none of these, or that names no objective.
    """
    parts = [part.strip() for part in text.split(",")]
    chebyshev = CHEBYSHEV in parts
    weights, limits = {}, {}
    for part in parts:
        if part == CHEBYSHEV:
            continue
        sign = next((s for s in (">=", "<=", "=") if s in part), "")
        name, number = _named_number(part, sign, objectives)
        if sign == "=":
            weights[name] = number
        else:
            _check_side(part, name, sign, objectives)
            limits[name] = number
    if chebyshev and limits:
        raise BadSearch(f"--prefer {text!r}: expected chebyshev or limits, got both; leave one out")
    weighed = tuple(o.model_copy(update={"weight": _weight(o, weights)}) for o in objectives)
    if limits:
        return weighed, ConstraintSettings(limits=limits)
    return weighed, ChebyshevSettings() if chebyshev else WeightedSettings()


def _weight(objective: AnyObjective, weights: dict[str, float]) -> float:
    if not weights:
        return objective.weight
    return weights.get(objective.name, weights.get(objective.title, UNNAMED_WEIGHT))


def _named_number(part: str, sign: str, objectives: Sequence[AnyObjective]) -> tuple[str, float]:
    task = objectives[0].title
    name, _, number = part.partition(sign) if sign else (part, "", "")
    try:
        value = float(number)
    except ValueError:
        raise BadSearch(
            f"--prefer {part!r}: expected task=weight (for example {task}=2), task>=limit or chebyshev"
        ) from None
    try:
        check_names([name.strip()], objectives)
    except ValueError as error:
        raise BadSearch(f"--prefer: {error}") from None
    if not np.isfinite(value) or (sign == "=" and value <= 0.0):
        raise BadSearch(f"--prefer {part!r}: a weight must be a positive number, a limit a finite one")
    return name.strip(), value


def _check_side(part: str, name: str, sign: str, objectives: Sequence[AnyObjective]) -> None:
    objective = next(o for o in objectives if name in (o.name, o.title))
    expected = ">=" if objective.sign > 0 else "<="
    if sign != expected:
        better = "more" if objective.sign > 0 else "less"
        raise BadSearch(f"--prefer {part!r}: of {objective.name} {better} is better; write {name}{expected}limit")
