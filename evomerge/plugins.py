"""Operators, objectives and optimizers of other packages, found by their entry points.

A plug-in is a class of one of the kinds below; its entry point is called like its `kind`. Nothing is loaded before a
search file or a recipe names it. Importing this module lets the leaves ask here for kinds that they do not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from typing_extensions import TypedDict  # pydantic cannot read typing's before Python 3.12

from evaluators import objective_kinds
from evaluators.errors import one_line
from evomerge.errors import BadRecipe, BadSearch
from search_spaces import operators
from search_spaces.recipe import Recipe

T = TypeVar("T", bound=BaseModel)


class Described(TypedDict):
    """What the record keeps of a plug-in."""

    group: str
    name: str
    package: str
    version: str


GROUPS = ("operators", "objectives", "optimizers")
PLUGINS = "plugins"  # key of a search's plan


def find(group: str, kind: str, base: type[T], own: Iterable[str]) -> type[T] | None:
    """Return the class that an installed package brings under ``kind``; None if there is none.

    Args:
        group: one of `GROUPS`.
        base: what the class must derive from.
        own: the kinds that evomerge itself has.

    Raises:
        BadSearch: the name is evomerge's own or that of two packages, or the plug-in is broken.
    """
    found = _named(group).get(kind, ())
    if not found:
        return None
    packages = " and ".join(_package(each) for each in found)
    if kind in own:
        raise BadSearch(f"{group} {kind!r}: evomerge has one, and so does {packages}; uninstall that or rename it")
    if len(found) > 1:
        raise BadSearch(f"{group} {kind!r}: {packages} both bring one; uninstall one of them")
    return cast(type[T], _load(group, kind, base))


def described(file: Mapping[str, Any]) -> list[Described]:
    """Return the plug-ins that a search file (JSON types) names; the record keeps them."""
    return [_describe(group, kind) for group, kind in _kinds(file) if _named(group).get(kind)]


def missing(recorded: Iterable[Described]) -> str | None:
    """Return what to install before a search that began with the plug-ins ``recorded`` can be read; None if all are."""
    for each in recorded:
        if not _named(each["group"]).get(each["name"]):
            return f"{_in_words(each)}, which is not installed; pip install {each['package']}=={each['version']}"
    return None


def changed(recorded: Iterable[Described], now: Iterable[Described]) -> str | None:
    """Return which plug-in is not what it was when a search began; None if all are the same."""
    there = {(each["group"], each["name"]): each for each in now}
    for before in recorded:
        found = there.get((before["group"], before["name"]))
        if found != before:
            now_there = f"{found['package']} {found['version']}" if found else "nothing of that name"
            return f"{_in_words(before)}, and {now_there} is installed"
    return None


def with_packages(recipe: Recipe, recorded: Iterable[Described] | None = None) -> Recipe:
    """Return ``recipe`` with the packages that bring its operators: as its search ``recorded`` them, else as installed.

    What the recipe says itself is kept."""
    kinds = dict.fromkeys(operator.kind for operator in recipe.operators)
    if recorded is None:
        recorded = [_describe("operators", kind) for kind in kinds if _named("operators").get(kind)]
    own = {f"{e['package']}=={e['version']}" for e in recorded if e["group"] == "operators" and e["name"] in kinds}
    return recipe if recipe.packages or not own else recipe.model_copy(update={"packages": tuple(sorted(own))})


def refuse_other_packages(recipe: Recipe) -> None:
    """Refuse a recipe whose operators are now brought by other packages, or versions, than it was made with.

    Raises:
        BadRecipe: they are; the text says what to install.
    """
    installed = with_packages(recipe.model_copy(update={"packages": ()})).packages
    if recipe.packages and recipe.packages != installed:
        now = ", ".join(installed) or "none"
        raise BadRecipe(
            f"the recipe was made with {', '.join(recipe.packages)}, and {now} is installed, which may merge otherwise"
            f": pip install {' '.join(recipe.packages)}, or take `packages` out of the recipe"
        )


def forget() -> None:
    """Look again at what is installed: a package came or went while this process runs."""
    _named.cache_clear()
    _load.cache_clear()


def _in_words(each: Described) -> str:
    return f"{each['group'].removesuffix('s')} {each['name']!r} of {each['package']} {each['version']}"


@cache
def _named(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points by name; the same one of a package that lies on the path twice counts once."""
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for each in entry_points(group=f"evomerge.{group}"):
        found.setdefault(each.name, {}).setdefault((_package(each), each.value), each)
    return {name: tuple(points.values()) for name, points in found.items()}


@cache
def _load(group: str, kind: str, base: type[BaseModel]) -> type[BaseModel]:
    """Import a plug-in and check that it is what its entry point says."""
    (point,) = _named(group)[kind]
    where = f"{group} {kind!r} of {_package(point)}"
    try:
        found = point.load()
    except Exception as error:  # whatever importing it raises
        raise BadSearch(f"{where} cannot be loaded: {type(error).__name__}: {one_line(error)}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise BadSearch(f"{where}: expected a subclass of {base.__module__}.{base.__name__}, got {found!r}")
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise BadSearch(f"{where}: {found.__name__} lacks {', '.join(lacking)}")
    named = found.model_fields["kind"].default if "kind" in found.model_fields else None
    if named != kind:
        raise BadSearch(f"{where}: expected kind: Literal[{kind!r}] = {kind!r}, got {named!r}")
    return found


def _describe(group: str, kind: str) -> Described:
    point = _named(group)[kind][0]
    version = point.dist.version if point.dist is not None else "unknown"
    return {"group": group, "name": kind, "package": _package(point), "version": version}


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


def _kinds(file: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Group and kind of all that a search file names, once each."""
    operators_named = [("operators", kind) for kind in _operators(file.get("space"))]
    objectives = [("objectives", each.get("kind", "metric")) for each in file.get("objectives", ())]
    yield from dict.fromkeys([*operators_named, *objectives, ("optimizers", file["optimizer"]["kind"])])


def _operators(value: Any) -> Iterator[str]:
    """Every operator in a section, however deep."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key == "operator" and isinstance(part, str):
                yield part
            else:
                yield from _operators(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _operators(part)


def _operator(kind: str) -> type[operators.OperatorPlugIn] | None:
    return find("operators", kind, operators.OperatorPlugIn, operators.OPERATORS)  # type: ignore[type-abstract]


def _objective(kind: str) -> type[objective_kinds.ObjectivePlugIn] | None:
    base = objective_kinds.ObjectivePlugIn
    return find("objectives", kind, base, objective_kinds.KINDS)  # type: ignore[type-abstract]


operators.ask_elsewhere(_operator)
objective_kinds.ask_elsewhere(_objective)
