"""Spaces of paths: through models as they are, through merges that are searched with the path, or found before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from pydantic import Field

from search_spaces.courses import Course, CourseSettings, ModelSize, Moments
from search_spaces.genes import Gene, Genes, Genome
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.recipe import Block, Blocks, Dtype, Merge, PathBody, Recipe, Source, alone, slot_names
from search_spaces.vocabulary import Vocabulary

Model: TypeAlias = int | Merge | ParameterSpace  # a source, a merge, or merges that are searched


class DataFlowSettings(CourseSettings):
    """The `space` section of a search file for ``kind: data_flow``."""

    kind: Literal["data_flow"] = "data_flow"
    models: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="names of experts, or base; the first gives embeddings and head. All "
        "experts by default"
    )  # fmt: skip


class JointSettings(CourseSettings):
    """The `space` section of a search file for ``kind: joint``: merges and the path through them at once."""

    kind: Literal["joint"] = "joint"
    models: tuple[ParameterSpaceSettings | str, ...] = Field(
        min_length=1, description="a parameter space ({operator: ...}) for each merge, names of experts, or base"
    )


class HybridSettings(CourseSettings):
    """The `space` section of a search file for ``kind: hybrid``: the best merge first, then paths from it."""

    kind: Literal["hybrid"] = "hybrid"
    merge: ParameterSpaceSettings = Field(description="the parameter space whose winner becomes the first model")
    models: tuple[str, ...] | None = Field(default=None, description="the other models; all experts by default")
    share: float = Field(default=0.5, gt=0.0, lt=1.0, description="of budget.evaluations that the merge gets")


PathSpaceSettings: TypeAlias = DataFlowSettings | JointSettings | HybridSettings


@dataclass(frozen=True)
class PathSpace:
    """Paths through some models, and the way to a recipe.

    Attributes:
        sources: base first, then the experts.
        expert_names: short names, used in reports.
        models: what paths lead through; the first is model A.
        layers: number of layers of each model.
        tokenizer: position of the source that gives tokenizer and config.
        size: of each model.
        moments: of the models' residual streams, if scales start from them.
    """

    settings: CourseSettings
    sources: tuple[Source, ...]
    expert_names: tuple[str, ...]
    models: tuple[Model, ...]
    layers: int
    dtype: Dtype = "bfloat16"
    tokenizer: int = 0
    size: ModelSize | None = None
    moments: Moments | None = None
    vocabulary: Vocabulary | None = None

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        """A name for every model: that of the source, or merge, merge-2, ..."""
        return slot_names(self.models, ("base", *self.expert_names))

    @cached_property
    def course(self) -> Course:
        """The genes of the path itself."""
        return Course(self.settings, self.model_names, self.layers, self.size, self.moments)

    @cached_property
    def genes(self) -> Genes:
        """The genes of every merge that is searched, under its name, then those of the path."""
        return Genes((*self._merge_genes(), *self.course.genes))

    def _merge_genes(self) -> Iterator[Gene]:
        for name, model in zip(self.model_names, self.models, strict=True):
            if isinstance(model, ParameterSpace):
                for gene in model.genes.genes:
                    yield Gene(f"{name}/{gene.name}", gene.low, gene.high, gene.start, gene.kind)

    @property
    def in_words(self) -> str:
        """How large the space is."""
        parameters = self.course.most_parameters
        size = f" and {parameters / 1e6:,.1f} million parameters" if parameters else ""
        return (
            f"{len(self.genes)} genes, paths of at most {self.course.most_hops} layers{size} through "
            f"{', '.join(self.model_names)} ({self.settings.form})"
        )

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of ``genome``; models that its path does not visit are not in it.

        Raises:
            ValueError: the genome has the wrong length or leaves the bounds.
        """
        values = self.genes.check(genome).values
        slots: list[int | Merge] = []
        for model in self.models:
            if isinstance(model, ParameterSpace):
                count = len(model.genes)
                body = model.decode(Genome(values[:count])).body
                assert not isinstance(body, PathBody)  # a parameter space decodes merges
                slots.append(body)
                values = values[count:]
            else:
                slots.append(model)
        hops = self.course.hops(values)
        used = sorted({0, *(hop.slot for hop in hops)})
        body = PathBody(
            slots=tuple(slots[number] for number in used),
            hops=tuple(hop.model_copy(update={"slot": used.index(hop.slot)}) for hop in hops),
            signed=self.settings.signed,
        )
        return self._recipe(body)

    @property
    def model_recipes(self) -> Iterator[Recipe]:
        """A recipe for every model alone; for merges that are searched, at their start."""
        for model in self.models:
            if isinstance(model, ParameterSpace):
                yield model.decode(Genome(model.genes.start))
            else:
                yield self._recipe(alone(model, len(self.sources)) if isinstance(model, int) else model)

    def recipe(self, blocks: tuple[Block, ...]) -> Recipe:
        """Return a recipe over this space's sources with ``blocks`` as its body."""
        return self._recipe(Blocks(blocks=blocks))

    def _recipe(self, body: Merge | PathBody) -> Recipe:
        return Recipe(
            sources=self.sources,
            base=0,
            tokenizer=self.tokenizer,
            dtype=self.dtype,
            vocabulary=self.vocabulary,
            body=body,
        )

    @property
    def start(self) -> Genome:
        """The genome of model A itself, with every merge at its start."""
        return Genome(self.genes.start)

    def plain(self, weights: tuple[float, ...], *, linear: bool = True) -> Genome | None:
        """Return the genome that is ``base + sum_i weights_i (expert_i - base)``, or None where there is none.

        Args:
            linear: whether it is a linear combination in which the base has no part of its own.
        """
        first = self.models[0]
        if isinstance(first, ParameterSpace):
            merge = first.plain(weights, linear=linear)
            rest = self.genes.start[len(first.genes) :]
            return None if merge is None else Genome(np.concatenate([merge.values, rest]))
        alone = tuple(float(position == first) for position in range(1, len(self.sources)))
        return self.start if isinstance(first, int) and weights == alone else None


def path_space(
    settings: PathSpaceSettings,
    *,
    sources: tuple[Source, ...],
    expert_names: tuple[str, ...],
    layers: int,
    dtype: Dtype = "bfloat16",
    mask_seed: int = 0,
    vocabulary: Vocabulary | None = None,
    first: Merge | None = None,
    prompts: str | None = None,
    size: ModelSize | None = None,
) -> PathSpace:
    """Return the space of ``settings``.

    Args:
        first: of a hybrid, the merge that was found; the start of its parameter space if None.
        prompts: digest of the calibration prompts of operators that need statistics.
        size: of each model; needed by `most_parameters`.

    Raises:
        ValueError: a model is not known, or the space does not fit the models.
    """

    def merges(inner: ParameterSpaceSettings) -> ParameterSpace:
        return ParameterSpace(inner, sources, expert_names, layers, dtype, mask_seed, vocabulary, prompts)

    named = ("base", *expert_names)
    models: list[Model] = []
    if isinstance(settings, HybridSettings):
        space = merges(settings.merge)
        body = first or space.decode(Genome(space.genes.start)).body
        assert not isinstance(body, PathBody)  # a parameter space decodes merges
        models.append(body)
    for model in expert_names if settings.models is None else settings.models:
        models.append(_position(model, named) if isinstance(model, str) else merges(model))
    made = PathSpace(settings, sources, expert_names, tuple(models), layers, dtype, size=size, vocabulary=vocabulary)
    if twice := sorted({name for name in made.model_names if made.model_names.count(name) > 1}):
        raise ValueError(f"models: {', '.join(twice)} is given twice; use repeats to visit a layer again")
    len(made.genes)  # refuses what the course refuses
    return made


def _position(name: str, named: Sequence[str]) -> int:
    if name not in named:
        raise ValueError(f"models: {name!r} is not known; expected one of {', '.join(named)}")
    return named.index(name)


def fixed_merges(space: PathSpace) -> list[Merge]:
    """Return the merges that paths of ``space`` lead through and that are not searched."""
    return [model for model in space.models if not isinstance(model, int | ParameterSpace)]
