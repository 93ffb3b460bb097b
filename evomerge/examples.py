"""Recipes that stand for all of a space, for what is computed once: statistics, shared vectors, compiled kernels."""

from __future__ import annotations

from search_spaces.genes import Genome
from search_spaces.mosaic_space import MosaicSpace
from search_spaces.parameter_space import ParameterSpace
from search_spaces.path_space import PathSpace, fixed_merges
from search_spaces.recipe import Recipe
from search_spaces.seeds import base_recipe
from search_spaces.spaces import Space


def example_recipes(space: Space) -> list[Recipe]:
    """Return `example_merges` and, as the last, a point of ``space``."""
    return [*example_merges(space), _start(space)]


def example_merges(space: Space) -> list[Recipe]:
    """Return merges that need, between them, all that the operators of ``space`` compute once."""
    searched = space.models if isinstance(space, PathSpace) else (space,)
    recipes = [inner.decode(Genome(inner.genes.start)) for inner in searched if isinstance(inner, ParameterSpace)]
    if isinstance(space, PathSpace):
        recipes += [base_recipe(space).model_copy(update={"body": body}) for body in fixed_merges(space)]
    return recipes


def _start(space: Space) -> Recipe:
    """Return a point of ``space``."""
    if isinstance(space, MosaicSpace):
        return space.decode(space.plain((0.0,) * len(space.expert_names)))
    return space.decode(Genome(space.genes.start))
