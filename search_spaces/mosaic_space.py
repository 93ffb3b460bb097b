"""The space of mosaics: every piecewise-constant combination of the sources that crossing them can make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator

from search_spaces.canonical import Frozen
from search_spaces.genes import Gene, Genes, Genome
from search_spaces.mosaic import Mosaic, MosaicAlgebra, Segments
from search_spaces.parameter_space import REST, TENSOR_GROUPS
from search_spaces.patterns import matches
from search_spaces.recipe import Block, Blocks, Dtype, Recipe, Source
from search_spaces.tiles import Chromosome, MosaicBody, Sphere
from search_spaces.vocabulary import Vocabulary

DEFAULT_TILE = 16_384
SHOWN = (-2.0, 2.0)  # the range of mean coefficients in figures; a mosaic has no bounds


class MosaicSpaceSettings(Frozen):
    """The `space` section of a search file for ``kind: mosaic``."""

    kind: Literal["mosaic"] = "mosaic"
    tile: int = Field(default=DEFAULT_TILE, ge=1, description="elements between two possible split points")
    chromosomes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="{name: [patterns]}, or self_attn, mlp, norms, embeddings for a pattern; the rest is one too",
    )
    sphere: Sphere = Field(default="weights", description="what SLERP keeps the length of: weights or task_vectors")

    @model_validator(mode="after")
    def _names_are_free(self) -> MosaicSpaceSettings:
        for name, patterns in self.chromosomes.items():
            if name == REST:
                raise ValueError(f"chromosome {REST!r} is the name of the remainder; choose another")
            if not patterns:
                raise ValueError(f"chromosome {name!r}: give at least one pattern")
        return self

    def layout(self, names: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return name and patterns of each chromosome for tensors ``names``, what is left over last."""
        given = tuple(
            (name, tuple(pattern for each in patterns for pattern in TENSOR_GROUPS.get(each, (each,))))
            for name, patterns in self.chromosomes.items()
        )
        left = any(not any(matches(name, patterns) for _, patterns in given) for name in names)
        return (*given, (REST if given else "all", ("*",))) if left else given


@dataclass(frozen=True, eq=False)
class MosaicSpace:
    """Mosaics over some sources, and the way to a recipe.

    Attributes:
        sources: base first, then the experts.
        expert_names: short names, used in reports.
        layers: number of layers of the models.
        algebra: of these sources.
    """

    settings: MosaicSpaceSettings
    sources: tuple[Source, ...]
    expert_names: tuple[str, ...]
    layers: int
    algebra: MosaicAlgebra
    dtype: Dtype = "bfloat16"
    vocabulary: Vocabulary | None = None

    @cached_property
    def genes(self) -> Genes:
        """What tables and figures show of a mosaic: the mean coefficient of each source in each chromosome."""
        chromosomes = [name for name, _ in self.algebra.grid.chromosomes]
        names = mean_names(("base", *self.expert_names), chromosomes)
        return shown_genes(names)

    @property
    def in_words(self) -> str:
        """How large the space is."""
        grid = self.algebra.grid
        count = len(grid.chromosomes)
        return f"mosaics of {sum(grid.tiles):,} tiles in {count} chromosome{'s' if count > 1 else ''}"

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a mosaic.

        Raises:
            TypeError: ``genome`` is no mosaic.
        """
        if not isinstance(genome, Mosaic):
            raise TypeError(f"a mosaic space decodes mosaics, got {type(genome).__name__}")
        layout = zip(self.algebra.grid.chromosomes, genome.segments, strict=True)
        chromosomes = tuple(_chromosome(*place, segments) for place, segments in layout)
        return self._recipe(MosaicBody(tile=self.settings.tile, chromosomes=chromosomes))

    def recipe(self, blocks: tuple[Block, ...]) -> Recipe:
        """Return a recipe over this space's sources with ``blocks`` as its body."""
        return self._recipe(Blocks(blocks=blocks))

    def _recipe(self, body: Blocks | MosaicBody) -> Recipe:
        return Recipe(
            sources=self.sources, base=0, tokenizer=0, dtype=self.dtype, vocabulary=self.vocabulary, body=body
        )

    def plain(self, weights: Sequence[float], *, linear: bool = True) -> Mosaic:
        """Return ``base + sum_i weights_i (expert_i - base)`` as a mosaic, ``weights`` (experts,)."""
        return self.algebra.constant([1.0 - sum(weights), *weights])


def mean_names(sources: Sequence[str], chromosomes: Sequence[str]) -> list[str]:
    """Return the names of the values of a mosaic, in their order."""
    return [f"mean/{source}" + f"/{c}" * (len(chromosomes) > 1) for c in chromosomes for source in sources]


def shown_genes(names: Sequence[str]) -> Genes:
    """Return genes with these names for views of mosaics."""
    return Genes(tuple(Gene(name, *SHOWN, 0.0) for name in names))


def _chromosome(name: str, patterns: tuple[str, ...], segments: Segments) -> Chromosome:
    return Chromosome(
        name=name,
        tensors=patterns,
        boundaries=tuple(segments.boundaries.tolist()),
        coefficients=tuple(tuple(row) for row in segments.coefficients.tolist()),
    )
