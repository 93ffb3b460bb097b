"""What is measured: objectives, and the settings that fix which documents measure them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Direction: TypeAlias = Literal["maximize", "minimize"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class ObjectiveBase(_Settings):
    """What every kind of objective has. Its name has two parts, what is measured on and what is measured."""

    direction: Direction = "maximize"
    weight: float = Field(default=1.0, gt=0.0, description="importance when objectives are added up")

    @property
    def title(self) -> str:
        """First part of the name: the task or file, or the kind of what has no documents."""
        raise NotImplementedError

    @property
    def detail(self) -> str:
        """Second part of the name, empty where there is none."""
        raise NotImplementedError

    @property
    def documents_of(self) -> str | None:
        """The task whose documents are measured; None where there are no documents."""
        return self.title

    @property
    def name(self) -> str:
        """The name that reports and records use: ``task/metric``."""
        return f"{self.title}/{self.detail}" if self.detail else self.title

    @property
    def sign(self) -> float:
        """+1 when more is better, -1 when less is: everything is maximised inside."""
        return 1.0 if self.direction == "maximize" else -1.0


class Objective(ObjectiveBase):
    """One metric of one lm-eval task."""

    # not written down: search files and records from before there were kinds stay what they are
    kind: Literal["metric"] = Field(default="metric", exclude=True)
    task: str = Field(min_length=1, description="lm-eval task")
    metric: str = Field(default="acc", min_length=1, description="metric, after a comma its filter if it has several")

    @property
    def title(self) -> str:
        """The task."""
        return self.task

    @property
    def detail(self) -> str:
        """The metric."""
        return self.metric


def _not_empty(text: str) -> str:
    first, _, stop = text.partition(":")
    if int(first) >= int(stop):
        raise ValueError(f"a range of documents is 'first:stop' with first < stop, got {text!r}")
    return text


DocumentRange: TypeAlias = Annotated[str, Field(pattern=r"^\d+:\d+$"), AfterValidator(_not_empty)]
DocumentChoice: TypeAlias = Annotated[int, Field(ge=1)] | DocumentRange
"""How many documents of each task, or which ones: ``"first:stop"`` in the task's own order, stop not included."""


class RacingSettings(_Settings):
    """How candidates race; `evaluation.racing: true` takes the defaults."""

    first: int = Field(default=8, ge=2, description="documents of each task in the first block")
    growth: float = Field(default=2.0, gt=1.0, le=10.0, description="factor from one look to the next")
    threshold: float = Field(
        default=0.07, gt=0.0, lt=0.5, description="a candidate leaves when its chance to reach the best is below"
    )


def _from_switch(value: Any) -> Any:
    if isinstance(value, bool):
        return {} if value else None
    return value


Racing: TypeAlias = Annotated[
    RacingSettings | None, BeforeValidator(_from_switch, json_schema_input_type=RacingSettings | bool | None)
]


class MinibatchSettings(_Settings):
    """How the search documents are cut; `evaluation.minibatches: 4` stands for `{count: 4}`."""

    count: int = Field(default=4, ge=2, description="minibatches of the search documents; a generation sees one")
    measure: Literal["metric", "probability", "probability_per_token"] = Field(
        default="metric",
        description="what guides the search: the objectives, or how probable a model finds the right answers",
    )


def _from_count(value: Any) -> Any:
    return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value


Minibatching: TypeAlias = Annotated[
    MinibatchSettings | None, BeforeValidator(_from_count, json_schema_input_type=MinibatchSettings | int | None)
]


class EvaluationSettings(_Settings):
    """The `evaluation` section of a search file. Document counts are per task."""

    search_documents: DocumentChoice = Field(default=400, description="number per task, or a range first:stop")
    validation_documents: DocumentChoice = Field(default=200, description="number per task, or a range first:stop")
    test_documents: DocumentChoice = Field(default=400, description="number per task, or a range first:stop")
    split_seed: int = Field(default=0, ge=0, description="which documents fall into which split")
    include_path: tuple[str, ...] = Field(default=(), description="folders with the user's own task files")
    trusted_paths: tuple[str, ...] = Field(default=(), description="task folders whose Python may run unsandboxed")
    allow_code_execution: bool = Field(
        default=False, description="run the code that models write, in a subprocess with limits"
    )
    code_seconds_per_document: float = Field(default=10.0, gt=0.0, description="time to judge executed code")
    code_memory_mib: int = Field(default=1024, ge=16, description="memory to judge executed code")
    num_fewshot: int | None = Field(default=None, ge=0, description="overrides the tasks' own number")
    fewshot_seed: int = Field(default=1234, ge=0)
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = Field(default=True, description="with a chat template: one turn per example")
    system_instruction: str | None = None
    sampling_seed: int | None = Field(
        default=None, ge=0, description="of tasks that sample their answers; the optimizer's seed by default"
    )
    tokens_per_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="padded tokens in one forward pass"
    )
    max_length: int | None = Field(default=None, ge=2, description="context window; the model's own by default")
    timeout_seconds: float = Field(default=3600.0, gt=0.0, description="longest time one candidate may take")
    racing: Racing = Field(default=None, description="candidates without a chance leave early; true, or settings")
    minibatches: Minibatching = Field(
        default=None, description="every generation sees one part of the search documents; how many parts, or settings"
    )

    @model_validator(mode="after")
    def _one_way_to_save(self) -> Self:
        if self.racing and self.minibatches:
            raise ValueError("racing and minibatches both decide which documents a candidate sees; choose one of them")
        return self
