"""The candidates every search starts with: base, experts, uniform average, and a few classical merges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from search_spaces.genes import Genome
from search_spaces.operators import Linear, Operator, TaskArithmetic, Ties
from search_spaces.path_space import PathSpace
from search_spaces.recipe import Block, Recipe
from search_spaces.spaces import Space

UNIFORM = "uniform average"


class Seed(NamedTuple):
    """A named recipe, and its genome where the space can express exactly this merge."""

    name: str
    recipe: Recipe
    genome: Genome | None


def single_coefficient(space: Space, coefficient: float) -> Recipe:
    """Return task arithmetic with one ``coefficient`` for every expert and tensor."""
    return _everywhere(space, TaskArithmetic(weights=(coefficient,) * len(space.expert_names)))


def base_recipe(space: Space) -> Recipe:
    """Return the base itself as a recipe."""
    return _only(space, 0)


def seeds(space: Space) -> Iterator[Seed]:
    """Yield base, each expert, the uniform average, task arithmetic at 0.4 and 1/sqrt(experts), and TIES.

    For paths that begin in a merge, that merge is one too.
    """
    count = len(space.expert_names)
    yield Seed("base", base_recipe(space), space.plain((0.0,) * count, linear=False))
    for position, name in enumerate(space.expert_names):
        one_hot = tuple(1.0 if i == position else 0.0 for i in range(count))
        yield Seed(name, _only(space, position + 1), space.plain(one_hot))
    if isinstance(space, PathSpace) and not isinstance(space.models[0], int):
        yield Seed("model A", space.decode(space.start), space.start)
    if count == 1:
        return
    average = (1.0 / count,) * count
    yield Seed(UNIFORM, _everywhere(space, Linear(weights=(0.0, *average))), space.plain(average))
    for coefficient in (0.4, round(count**-0.5, 3)):
        genome = space.plain((coefficient,) * count, linear=False)
        yield Seed(f"task arithmetic {coefficient:g}", single_coefficient(space, coefficient), genome)
    ties = Ties(weights=(1.0,) * count, densities=(0.5,) * count)
    yield Seed("TIES 0.5", _everywhere(space, ties), None)


def _only(space: Space, position: int) -> Recipe:
    weights = tuple(1.0 if i == position else 0.0 for i in range(len(space.sources)))
    return _everywhere(space, Linear(weights=weights))


def _everywhere(space: Space, operator: Operator) -> Recipe:
    return space.recipe((Block(layers=(0, space.layers), operator=operator),))
