"""Calibration prompts: what the models are run on once, so that operators know which weights matter to them.

The prompts are a record of their own. A recipe whose operators need statistics names them by their digest, and carries
no text: whoever rebuilds the merge needs this record, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from search_spaces.canonical import Frozen, canonical_json, digest

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CalibrationSettings(Frozen):
    """The `calibration` section: the prompts of operators that need statistics, all of them search documents."""

    documents: int = Field(default=32, ge=1, description="of each task, the first search documents")
    tokens: int = Field(default=512, ge=2, description="of prompt and answer; longer prompts lose their beginning")
    tasks: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="tasks whose prompts an expert is run on, by its name; those of all objectives for the others",
    )

    @field_validator("tasks")
    @classmethod
    def _none_is_empty(cls, tasks: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if empty := sorted(name for name, own in tasks.items() if not own):
            raise ValueError(f"{empty[0]} has no task; name one, or leave the expert out")
        return tasks

    def check(self, experts: Sequence[str], *, needed: bool) -> None:
        """Refuse what does not fit the ``experts``, by name, or is not ``needed`` by any operator.

        Raises:
            ValueError: which it is.
        """
        if not needed:
            raise ValueError("calibration: no operator of this space needs statistics; leave it out")
        if unknown := sorted(self.tasks.keys() - set(experts)):
            raise ValueError(f"calibration.tasks: {unknown[0]} is no expert (known: {', '.join(experts)})")


class Sample(Frozen):
    """A prompt with its reference answer, in tokens."""

    tokens: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=2, description="prompt, then answer")
    answer: int = Field(ge=1, description="position of the answer's first token")

    @model_validator(mode="after")
    def _has_an_answer(self) -> Sample:
        if self.answer >= len(self.tokens):
            raise ValueError(f"the answer begins at token {self.answer} of {len(self.tokens)}: there is none")
        return self


class Calibration(Frozen):
    """The prompts that each expert is run on; the same ones may serve several."""

    format: Literal["evomerge-calibration-1"] = "evomerge-calibration-1"
    samples: tuple[Sample, ...] = Field(min_length=1)
    experts: tuple[tuple[int, ...], ...] = Field(
        min_length=1, description="positions in `samples`, for each expert in the order of the sources"
    )

    @classmethod
    def of(cls, prompts: Mapping[str, Sequence[Sample]], tasks: Sequence[Sequence[str]]) -> Calibration:
        """Return the record of ``prompts`` by task, of which each expert sees those of its ``tasks``."""
        first, start = {}, 0
        for task, samples in prompts.items():
            first[task] = range(start, start + len(samples))
            start += len(samples)
        return cls(
            samples=tuple(sample for samples in prompts.values() for sample in samples),
            experts=tuple(tuple(place for task in own for place in first[task]) for own in tasks),
        )

    @model_validator(mode="after")
    def _positions_exist(self) -> Calibration:
        for number, places in enumerate(self.experts):
            if not places or not all(0 <= place < len(self.samples) for place in places):
                raise ValueError(f"expert {number} needs positions among {len(self.samples)} samples, got {places}")
        return self

    def of_expert(self, number: int) -> tuple[Sample, ...]:
        """Return the prompts of one expert, the base not counted."""
        return tuple(self.samples[place] for place in self.experts[number])

    @cached_property
    def expert_digests(self) -> tuple[str, ...]:
        """SHA-256 over the prompts of each expert."""
        numbers = range(len(self.experts))
        return tuple(digest([each.model_dump(mode="json") for each in self.of_expert(number)]) for number in numbers)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON."""
        return digest(self.model_dump(mode="json"))

    def to_json(self) -> str:
        """Return the canonical JSON; `Calibration.model_validate_json` reads it back."""
        return canonical_json(self.model_dump(mode="json"))
