"""Objectives beyond the metrics of lm-eval, told apart by `kind`; docs/objectives.md describes each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import (
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from evaluators.objective import Direction, Objective, ObjectiveBase

Per: TypeAlias = Literal["token", "word", "byte"]


class _OfTask(ObjectiveBase):
    task: str

    @property
    def title(self) -> str:
        """The task."""
        return self.task


class Likelihood(_OfTask):
    """Mean log-likelihood or probability of the reference answers of a task: a fitness without plateaus."""

    kind: Literal["likelihood"]
    task: str = Field(min_length=1, description="lm-eval task")
    per: Literal["answer", "token", "byte"] = Field(default="answer", description="what an answer is divided by")
    scale: Literal["nats", "probability"] = Field(
        default="nats",
        description="of a document's score; probability: of a right choice among the choices, or of the answer",
        exclude_if=lambda scale: scale == "nats",  # records from before there were scales stay what they are
    )

    @property
    def detail(self) -> str:
        """What it is, and per what."""
        what = "likelihood" if self.scale == "nats" else "probability"
        return what if self.per == "answer" else f"{what} per {self.per}"


class _OfFile(ObjectiveBase):
    file: str = Field(min_length=1, description="text file (UTF-8), relative to the search file")
    per: Per = Field(default="token", description="the unit of text")
    window: int = Field(default=2000, ge=1, description="characters of one document: whole paragraphs up to this many")

    @property
    def title(self) -> str:
        """The file's name."""
        return Path(self.file).name


class Perplexity(_OfFile):
    """Perplexity of a text file, which is cut into documents."""

    kind: Literal["perplexity"]
    direction: Direction = "minimize"

    @property
    def detail(self) -> str:
        """What it is, and per what."""
        return f"perplexity per {self.per}"


class Length(_OfTask):
    """Mean number of generated tokens per response to a task."""

    kind: Literal["length"]
    task: str = Field(min_length=1, description="lm-eval task that generates")
    direction: Direction = "minimize"

    @property
    def detail(self) -> str:
        """What it is."""
        return "length"


class Language(_OfTask):
    """A metric that counts only where the response is in one language; without a metric the share of those."""

    kind: Literal["language"]
    task: str = Field(min_length=1, description="lm-eval task that generates")
    metric: str | None = Field(default=None, min_length=1, description="metric whose mean over documents counts")
    language: str = Field(pattern=r"^[a-z]{2,3}$", description="ISO 639-1 code, for example ja")
    direction: Literal["maximize"] = "maximize"

    @property
    def detail(self) -> str:
        """The metric and the language."""
        return f"{self.metric} in {self.language}" if self.metric else f"in {self.language}"

    @property
    def counted(self) -> Objective | None:
        """The metric whose scores count."""
        return Objective(task=self.task, metric=self.metric) if self.metric else None


class CostPerAnswer(_OfTask):
    """Tokens or seconds per answer."""

    kind: Literal["cost"]
    task: str = Field(min_length=1, description="lm-eval task that generates")
    unit: Literal["tokens", "seconds"] = Field(default="tokens", description="seconds are wall time, and noisy")
    direction: Direction = "minimize"

    @property
    def detail(self) -> str:
        """The unit."""
        return f"{self.unit} per answer"


class Distance(ObjectiveBase):
    """Norm of the difference to the base over all merged tensors; no documents, no error."""

    kind: Literal["distance"]
    relative_to: Literal["experts", "base"] = Field(
        default="experts", description="1 is the farthest expert's distance, or the norm of the base's own weights"
    )
    direction: Direction = "minimize"

    @property
    def title(self) -> str:
        """What it is."""
        return "distance"

    @property
    def detail(self) -> str:
        """What it is relative to, unless that is the experts."""
        return "" if self.relative_to == "experts" else f"relative to {self.relative_to}"

    @property
    def documents_of(self) -> str | None:
        """None."""
        return None


class Forgetting(ObjectiveBase):
    """How much worse than the base, paired on the same documents; negative where it is better."""

    kind: Literal["forgetting"]
    task: str | None = Field(default=None, min_length=1, description="lm-eval task; or give a file")
    metric: str = Field(default="acc", min_length=1, description="metric of the task")
    metric_direction: Direction = Field(default="maximize", description="the direction of the metric")
    file: str | None = Field(default=None, min_length=1, description="text file: loss in nats per unit of text")
    per: Per = Field(default="token", description="the unit of text of a file")
    window: int = Field(default=2000, ge=1, description="characters of one document of a file")
    direction: Direction = "minimize"

    @model_validator(mode="after")
    def _one_of_two(self) -> Forgetting:
        if (self.task is None) == (self.file is None):
            raise ValueError("give either a task (and its metric) or a file")
        stray = {"metric", "metric_direction"} if self.file else {"per", "window"}
        fields = type(self).model_fields
        if given := sorted(name for name in stray if getattr(self, name) != fields[name].default):
            raise ValueError(f"{', '.join(given)} is not for a {'file' if self.file else 'task'}")
        return self

    @property
    def lost(self) -> Objective | Perplexity:
        """What is compared with the base."""
        if self.file is not None:
            return Perplexity(kind="perplexity", file=self.file, per=self.per, window=self.window)
        assert self.task is not None
        return Objective(task=self.task, metric=self.metric, direction=self.metric_direction)

    @property
    def title(self) -> str:
        """The task or the file's name."""
        return self.lost.title

    @property
    def detail(self) -> str:
        """What is compared, and how."""
        return f"{self.lost.detail} forgotten"


class ObjectivePlugIn(_OfTask):
    """Base class of an objective that another package brings, on generated responses to a task.

    Its `kind` is the name of its entry point in the group `evomerge.objectives`.
    """

    kind: str
    task: str = Field(min_length=1, description="lm-eval task that generates")

    @property
    def detail(self) -> str:
        """The kind; what else tells two of them apart belongs in here."""
        return self.kind

    @abstractmethod
    def judge(self, documents: Sequence[Mapping[str, Any]], responses: Sequence[tuple[str, ...]]) -> Sequence[float]:
        """Return a finite score for each document; their mean is the objective.

        Args:
            documents: as the task has them.
            responses: to each document, up to their stops; more than one where the task repeats.
        """


NEEDS_BASE = (Distance, Forgetting)
GENERATES = (Length, Language, CostPerAnswer, ObjectivePlugIn)
KINDS = ("metric", "likelihood", "perplexity", "length", "language", "cost", "distance", "forgetting")
Find = Callable[[str], type[ObjectivePlugIn] | None]


def _nowhere(kind: str) -> type[ObjectivePlugIn] | None:
    return None


_find: Find = _nowhere


def ask_elsewhere(find: Find) -> None:
    """Let ``find`` say which class a kind of objective is that this package does not have."""
    global _find
    _find = find


def _kind_of(value: Any) -> Any:
    return value.get("kind", "metric") if isinstance(value, dict) else getattr(value, "kind", "metric")


def _own_or_plugged(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    kind = _kind_of(value)
    plugged = _find(kind) if isinstance(kind, str) else None
    return handler(value) if plugged is None else plugged.model_validate(value)


_Own: TypeAlias = Annotated[
    Annotated[Objective, Tag("metric")]
    | Annotated[Likelihood, Tag("likelihood")]
    | Annotated[Perplexity, Tag("perplexity")]
    | Annotated[Length, Tag("length")]
    | Annotated[Language, Tag("language")]
    | Annotated[CostPerAnswer, Tag("cost")]
    | Annotated[Distance, Tag("distance")]
    | Annotated[Forgetting, Tag("forgetting")],
    Discriminator(_kind_of),
]
if TYPE_CHECKING:
    AnyObjective: TypeAlias = _Own | ObjectivePlugIn
else:
    AnyObjective = Annotated[_Own, WrapValidator(_own_or_plugged), SerializeAsAny()]


def measured(objectives: Iterable[AnyObjective]) -> tuple[AnyObjective, ...]:
    """Return what an evaluator measures for ``objectives``: what needs the base stands for what is compared with it."""
    found: dict[str, AnyObjective] = {}
    for objective in objectives:
        if isinstance(objective, Forgetting):
            found.setdefault(objective.lost.name, objective.lost)
        elif not isinstance(objective, Distance):
            found.setdefault(objective.name, objective)
    return tuple(found.values())
