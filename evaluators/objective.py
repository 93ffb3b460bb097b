"""What is measured: objectives, and the settings that fix which documents measure them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Objective(BaseModel):
    """One metric of one lm-eval task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(min_length=1, description="lm-eval task")
    metric: str = Field(default="acc", min_length=1, description="metric, with its filter after a comma if there are several")
    direction: Literal["maximize", "minimize"] = "maximize"
    weight: float = Field(default=1.0, gt=0.0, description="importance when objectives are added up")

    @property
    def name(self) -> str:
        """The name that reports and records use: ``task/metric``."""
        return f"{self.task}/{self.metric}"

    @property
    def sign(self) -> float:
        """+1 when more is better, -1 when less is: everything is maximised inside."""
        return 1.0 if self.direction == "maximize" else -1.0


class EvaluationSettings(BaseModel):
    """The `evaluation` section of a search file. Document counts are per task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    search_documents: int = Field(default=400, ge=1)
    validation_documents: int = Field(default=200, ge=1)
    test_documents: int = Field(default=400, ge=1)
    split_seed: int = Field(default=0, ge=0, description="which documents fall into which split")
    include_path: tuple[str, ...] = Field(default=(), description="folders with the user's own task files")
    trusted_paths: tuple[str, ...] = Field(default=(), description="task folders whose Python may run unsandboxed")
    num_fewshot: int | None = Field(default=None, ge=0, description="overrides the tasks' own number")
    fewshot_seed: int = Field(default=1234, ge=0)
    apply_chat_template: bool = False
    system_instruction: str | None = None
    tokens_per_batch: int = Field(default=8192, ge=1, description="padded tokens in one forward pass")
    max_length: int | None = Field(default=None, ge=2, description="context window; the model's own by default")
    timeout_seconds: float = Field(default=3600.0, gt=0.0, description="longest time one candidate may take")
