"""Scores relative to the base: they need its weights or its answers, which an evaluator does not know."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evaluators.evaluation import Documents, Evaluation, Failure, Floats, Outcome, Score
from evaluators.objective_kinds import NEEDS_BASE, AnyObjective, Distance, Forgetting
from evomerge.errors import BadSearch
from search_spaces.recipe import Recipe, alone

if TYPE_CHECKING:
    from evomerge.merging.checkpoint import Checkpoint
    from evomerge.merging.resident import ResidentModel

_KEPT = 64  # document sets whose base scores are remembered


@dataclass(frozen=True)
class Base:
    """The base among the sources of a worker.

    Attributes:
        position: of the base among ``checkpoints``, which are the sources in the recipes' order.
    """

    position: int
    checkpoints: Sequence[Checkpoint]

    def recipe(self, like: Recipe) -> Recipe:
        """Return the base itself as a recipe over the sources of ``like``."""
        return Recipe.model_validate(dict(like) | {"body": alone(self.position, len(like.sources))})


class BaseScores:
    """Adds to evaluations the scores of the objectives that are relative to the base.

    The base is measured once per set of documents, with the same plan as the candidates, so that a candidate equal to
    the base forgets exactly nothing.
    """

    def __init__(
        self,
        objectives: Sequence[AnyObjective],
        base: Base | None,
        resident: ResidentModel,
        measure: Callable[[Recipe, Documents], Outcome],
    ) -> None:
        """Prepare; ``measure`` applies a recipe to the resident model and evaluates it.

        Raises:
            BadSearch: an objective needs a base, or experts, that are not there.
        """
        self._objectives = tuple(objectives)
        self._resident, self._measure = resident, measure
        self._known: OrderedDict[str, Evaluation] = OrderedDict()
        self._units: dict[str, float] = {}
        self._base = base
        relative = [objective for objective in objectives if isinstance(objective, NEEDS_BASE)]
        if relative and base is None:
            raise BadSearch(f"objective {relative[0].name} is relative to a base, and there is none; name it (--base)")
        self._forgets = any(isinstance(objective, Forgetting) for objective in relative)
        for objective in relative:
            if isinstance(objective, Distance) and base is not None:
                self._units[objective.name] = self._unit(objective, base)

    def prepare(self, recipe: Recipe, documents: Documents) -> Failure | None:
        """Measure the base on ``documents`` if that is needed and new; return why it could not be measured.

        The resident model is then the base: apply the candidate's recipe afterwards.
        """
        if self._base is None or not self._forgets:
            return None
        key = documents.digest
        if key not in self._known:
            outcome = self._measure(self._base.recipe(recipe), documents)
            if isinstance(outcome, Failure):  # not remembered: it may have been the machine's fault
                return replace(outcome, message=f"the base cannot be measured: {outcome.message}")
            self._known[key] = outcome
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return None

    def complete(self, evaluation: Evaluation, documents: Documents) -> Evaluation:
        """Return ``evaluation`` of the resident model with the scores of all objectives, and of nothing else.

        Objectives whose documents were not measured have none.
        """
        needed = {o.name: o.lost.name if isinstance(o, Forgetting) else o.name for o in self._objectives}
        asked = [o for o in self._objectives if isinstance(o, Distance) or needed[o.name] in evaluation.scores]
        return replace(evaluation, scores={o.name: self._score(o, evaluation, documents) for o in asked})

    def _score(self, objective: AnyObjective, evaluation: Evaluation, documents: Documents) -> Score:
        if isinstance(objective, Distance) and self._base is not None:
            return _exact(self._distance(self._base) / self._units[objective.name])
        if isinstance(objective, Forgetting):
            before = self._known[documents.digest]
            name, sign = objective.lost.name, objective.lost.sign
            lost: Floats = sign * (before.scores[name].documents - evaluation.scores[name].documents)
            return Score.mean_of(lost + 0.0)  # no negative zeros
        return evaluation.scores[objective.name]

    def _distance(self, base: Base) -> float:
        from evomerge.merging.distance import squared_distance

        return math.sqrt(squared_distance(self._resident.tensors, base.checkpoints[base.position]))

    def _unit(self, objective: Distance, base: Base) -> float:
        from evomerge.merging.distance import squared_distance, squared_norm

        names, own = self._resident.tensors, base.checkpoints[base.position]
        if objective.relative_to == "base":
            return math.sqrt(squared_norm(own, names)) or 1.0
        experts = [c for i, c in enumerate(base.checkpoints) if i != base.position]
        squares = [squared_distance({name: expert.tensor(name) for name in names}, own) for expert in experts]
        farthest = math.sqrt(max(squares, default=0.0))
        if not farthest:
            raise BadSearch(f"objective {objective.name}: every expert equals the base, so no distance can be a unit")
        return farthest


def _exact(value: float) -> Score:
    """A score without documents: known without error."""
    import numpy as np

    return Score(value, 0.0, np.array([], dtype=np.float64))
