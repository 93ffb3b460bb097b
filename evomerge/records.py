"""What the record holds, as values: searches, candidates and their evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import (
    Any,
    Literal,
    NotRequired,  # pydantic cannot read typing's before Python 3.12
    TypeAlias,
)

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from evaluators.evaluation import Cost, Failure, Floats, Stop
from evomerge import plugins
from evomerge.foreign import a_row
from search_spaces.genes import Genome
from search_spaces.recipe import Recipe

ReadScores: TypeAlias = Callable[["EvaluationRecord", str], Floats]  # (documents,) scores by objective name
Origin = Literal["seed", "optimizer", "baseline"]
Split = Literal["search", "validation", "test"]
State = Literal["waiting", "measured", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Measured:
    """One objective of one evaluation: the numbers without the documents."""

    value: float
    standard_error: float | None
    tie_break: float | None


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One evaluation as recorded: scores by objective name, or a failure.

    Attributes:
        stopped: why racing ended it early: `scores` are estimates then; None for an evaluation on all documents.
        truncated, over_limits: documents per task, as in `Evaluation`.
    """

    id: int
    split: Split
    documents_digest: str
    scores: Mapping[str, Measured]
    failure: Failure | None
    cost: Cost
    told_at: int | None
    answered_from: int | None
    created: float
    stopped: Stop | None = None
    truncated: Mapping[str, int] = field(default_factory=dict)
    over_limits: Mapping[str, int] = field(default_factory=dict)

    def values(self, objectives: tuple[str, ...]) -> Floats | None:
        """Return (objectives,) values, estimates if the evaluation was stopped; None after a failure."""
        return None if self.failure else np.array([self.scores[name].value for name in objectives])


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """One candidate as recorded. `evaluations` holds the latest per split; a driver keeps those that were measured
    without `recipe_json`."""

    id: int
    number: int
    origin: Origin
    name: str | None
    genome: Genome | None
    recipe_json: str
    recipe_digest: str
    parents: tuple[int, ...]
    asked_at: int | None
    created: float
    evaluations: Mapping[Split, EvaluationRecord] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return Recipe.model_validate_json(self.recipe_json)

    @property
    def label(self) -> str:
        """The name, or the number where there is none."""
        return self.name or f"candidate {self.number}"

    @property
    def state(self) -> State:
        """Computed from the record: waiting until a search evaluation is there."""
        evaluation = self.evaluations.get("search")
        if evaluation is None:
            return "waiting"
        if evaluation.failure:
            return "failed"
        return "stopped" if evaluation.stopped else "measured"

    def values(self, split: Split, objectives: tuple[str, ...]) -> Floats | None:
        """Return (objectives,) values measured on all documents of ``split``, in the metrics' own directions.

        None without them: before the measurement, after a failure, and where racing left only estimates.
        """
        evaluation = self.evaluations.get(split)
        return None if evaluation is None or evaluation.stopped else evaluation.values(objectives)


class _Plan(TypedDict):
    """What every plan has; more is allowed."""

    sources: list[dict[str, Any]]
    expert_names: list[str]
    layers: int
    genes: list[str]
    suite: str
    documents: dict[Split, dict[str, list[int]]]
    plugins: NotRequired[list[plugins.Described]]


_PLAN: TypeAdapter[_Plan] = TypeAdapter(_Plan)


def check_plan(plan: dict[str, Any]) -> None:
    """Refuse a plan that evomerge did not write.

    Raises:
        ValueError: something is missing, or of another type.
    """
    _PLAN.validate_python(plan)


@dataclass(frozen=True)
class SearchRow:
    """One search: its file and plan as JSON types, and the wall time spent."""

    id: int
    name: str
    file: dict[str, Any]
    plan: dict[str, Any]
    created: float
    seconds: float


_BITS, _FLOATS = b"b", b"f"


def pack_scores(values: npt.NDArray[np.float64]) -> bytes:
    """Return per-document scores as bytes: one bit each when all are 0 or 1, else little-endian float32.

    The aggregate values are kept apart in double precision; float32 loses nothing that a document score has.
    """
    if np.isin(values, (0.0, 1.0)).all():
        return _BITS + len(values).to_bytes(4, "little") + np.packbits(values.astype(bool)).tobytes()
    return _FLOATS + values.astype("<f4").tobytes()


@a_row()
def unpack_scores(data: bytes) -> npt.NDArray[np.float64]:
    """Read what `pack_scores` wrote, (documents,) float64."""
    if data[:1] == _BITS:
        count = int.from_bytes(data[1:5], "little")
        return np.unpackbits(np.frombuffer(data[5:], np.uint8), count=count).astype(np.float64)
    return np.frombuffer(data[1:], "<f4").astype(np.float64)
