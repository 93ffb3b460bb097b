"""From a candidate, a recipe file or a mergekit config to files on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from evaluators.objective_kinds import AnyObjective
from evomerge.atomic import write_new
from evomerge.calibration import restore
from evomerge.card import plain_card, search_card
from evomerge.errors import BadRecipe, BadSearch
from evomerge.explain import UNKNOWN_KIND, explain
from evomerge.plugins import PLUGINS, refuse_other_packages, with_packages
from evomerge.preferences import ConstraintSettings, PreferenceSettings, parse_prefer
from evomerge.records import CandidateRecord, Split
from evomerge.results import Results
from evomerge.selection import Chooser
from evomerge.shares import Progress
from evomerge.targets import Place, local
from search_spaces.recipe import Dtype, Recipe

FORMATS = ("checkpoint", "adapter", "reversible", "mergekit", "recipe")  # of one candidate
TABLES = ("csv", "parquet")  # of all of them (evomerge.tabular)
OPTUNA = "optuna"  # of all of them, as a study (evomerge.optuna_view)


def choose(results: Results, *, candidate: int | None, best: bool, prefer: str | None) -> CandidateRecord:
    """Return the candidate that the options of `evomerge export` name; the winner by default.

    Raises:
        BadSearch: more than one way to choose, or a choice that does not exist.
    """
    if sum((candidate is not None, best, prefer is not None)) > 1:
        raise BadSearch("export: give one of --candidate, --best and --prefer")
    if candidate is not None:
        return results.pick(str(candidate))
    return results.pick("best") if prefer is None else _preferred(results, prefer)


def _preferred(results: Results, prefer: str) -> CandidateRecord:
    objectives, preference = parse_prefer(prefer, results.objectives)
    chosen, chooser, split = preferred(results, objectives, preference)
    if chosen is None:
        raise BadSearch(f"search {results.record.name!r} has no front yet; run it first")
    if chooser.number(chosen, split) <= -1.0 and isinstance(preference, ConstraintSettings):
        raise BadSearch(
            f"--prefer {prefer!r}: no candidate of the front keeps these limits on {split} documents; `evomerge front "
            f"{results.record.name}` shows what there is"
        )
    return chosen


def preferred(
    results: Results, objectives: tuple[AnyObjective, ...], preference: PreferenceSettings
) -> tuple[CandidateRecord | None, Chooser, Split]:
    """Return the front's best candidate under another preference, who says so, and the documents that decide:
    validation documents if any of the front was measured on them, then those candidates alone are compared; else search
    documents."""
    chooser = Chooser.of(objectives, results.candidates.of_origin("seed"), preference)
    measured = [c for c in results.front if c.values("validation", chooser.names) is not None]
    split: Split = "validation" if measured else "search"
    return chooser.best(measured or results.front, split), chooser, split


def export(
    results: Results,
    candidate: CandidateRecord,
    to: Place,
    *,
    kind: str,
    rank: int | None = None,
    dtype: str | None = None,
    memory_limit: str | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write ``candidate`` to ``to``, a path or an fsspec URL, in one of `FORMATS`; an adapter or a basis has ``rank``.

    ``dtype`` is that of the weights; by default that of the recipe, in which it was measured. ``memory_limit``, as
    2GiB, is of checkpoints: see `write_checkpoint`.

    Returns:
        What the user should know of what was written.

    Raises:
        UserMistake: an unknown format, a place that exists, sources that have changed, not enough disk.
    """
    if kind not in FORMATS:
        raise BadSearch(f"--format {kind!r}: expected one of {', '.join((*FORMATS, *TABLES, OPTUNA))}")
    plan = results.record.row.plan
    recipe = with_packages(in_dtype(candidate.recipe, dtype), plan.get(PLUGINS, ()))
    recipe = _as_recorded(recipe, plan)
    restore(plan)
    _check_options(kind, rank, memory_limit)
    if kind in ("checkpoint", "adapter"):
        refuse_other_packages(recipe)
    with local(to) as place:
        if kind == "adapter":
            card = search_card(results, candidate, recipe)
            return _adapter(recipe, place, rank=rank, card=card, progress=progress)
        if kind == "checkpoint":
            recipe = _pinned(recipe)
            card = search_card(results, candidate, recipe)
            return _checkpoint(recipe, place, card=card, memory_limit=memory_limit, progress=progress)
        if kind == "reversible":
            return _reversible(recipe, place, to, rank=rank, progress=progress)
        if kind == "mergekit":
            from evomerge.merging.mergekit_config import to_mergekit

            write_new(place, to_mergekit(recipe))
        else:
            from evomerge.merging.calibrations import keep, named_in, recall

            prompts = named_in(recipe)
            if prompts and place != Path(to):
                raise BadSearch(f"--to {to}: calibration prompts must lie beside this recipe; name a file here")
            write_new(place, recipe.to_json() + "\n")
            for digest in prompts:
                keep(recall(digest), place.parent)
    return []


def in_dtype(recipe: Recipe, dtype: str | None) -> Recipe:
    """Return ``recipe`` for weights in ``dtype``; as it is by default.

    Raises:
        BadRecipe: there is no such dtype.
    """
    if dtype is None:
        return recipe
    if dtype not in get_args(Dtype):
        raise BadRecipe(f"--dtype {dtype!r}: expected one of {', '.join(get_args(Dtype))}")
    return recipe.model_copy(update={"dtype": dtype})


def merge_file(
    file: Path,
    to: Place,
    *,
    kind: str = "checkpoint",
    rank: int | None = None,
    dtype: str | None = None,
    memory_limit: str | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write the merge that a recipe (JSON) or a mergekit config (YAML) describes as a checkpoint, or its experts in one
    basis (``kind`` reversible, of at most ``rank``).

    ``dtype`` is that of the weights; by default that of the recipe. ``memory_limit``, as 2GiB, see `write_checkpoint`.

    Returns:
        What the user should know of what was written.

    Raises:
        UserMistake: the file is neither, or cannot be merged.
    """
    if kind not in ("checkpoint", "reversible"):
        raise BadSearch(f"--format {kind!r}: expected checkpoint or reversible")
    _check_options(kind, rank, memory_limit)
    recipe = in_dtype(read_recipe(file), dtype)
    with local(to) as place:
        if kind == "reversible":
            return _reversible(recipe, place, to, rank=rank, progress=progress)
        recipe = _pinned(recipe)
        card = plain_card(recipe, place.name)
        return _checkpoint(recipe, place, card=card, memory_limit=memory_limit, progress=progress)


def read_recipe(file: Path) -> Recipe:
    """Read a recipe (``.json``), with the calibration prompts beside it, or a mergekit config (anything else).

    Raises:
        BadRecipe: it is neither, or was made with other versions of the packages that bring its operators.
    """
    if file.suffix != ".json":
        from evomerge.merging.mergekit_config import from_mergekit

        return from_mergekit(file)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadRecipe(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecipe(f"{file}: cannot be read: {error}") from None
    try:
        recipe = Recipe.model_validate_json(text)
    except ValidationError as error:
        raise BadRecipe(f"{file}: {_lacking(error, text) or f'not a recipe: {explain(error, Recipe)}'}") from None
    from evomerge.merging.calibrations import fetch

    refuse_other_packages(recipe)
    fetch(recipe, file.parent)
    return with_packages(recipe)


def _lacking(error: ValidationError, text: str) -> str | None:
    """Which operator nobody brings, though the recipe says which packages did; None if ``error`` is another."""
    faults = error.errors(include_url=False)
    lacking = [str(f["ctx"]["tag"]) for f in faults if f["type"] == UNKNOWN_KIND and f["loc"][-1] == "operator"]
    if not lacking or not (packages := json.loads(text).get("packages")):
        return None
    named = " ".join(map(str, packages))
    return f"operator {lacking[0]!r} is not installed; the recipe was made with {named}: pip install {named}"


def _adapter(recipe: Recipe, to: Path, *, rank: int | None, card: str, progress: Progress | None) -> list[str]:
    from evomerge.merging.adapter_export import write_adapter

    lost = write_adapter(_pinned(recipe), to, rank=rank, progress=progress, card=card)
    return [f"rank {rank} leaves out {lost:.3g} of the length of the step from the base"] if lost else []


def _check_options(kind: str, rank: int | None, memory_limit: str | None) -> None:
    if rank is not None and kind not in ("adapter", "reversible"):
        raise BadSearch(f"--rank is of adapters and bases (--format adapter, reversible), and a {kind} is asked for")
    if memory_limit is not None and kind != "checkpoint":
        raise BadSearch(f"--memory-limit is of checkpoints (--format checkpoint), and a {kind} is asked for")


def _reversible(recipe: Recipe, place: Path, to: Place, *, rank: int | None, progress: Progress | None) -> list[str]:
    from evomerge.merging.reversible import write_reversible

    if place != Path(to):
        raise BadSearch(f"--to {to}: the recipes that restore the experts name their folder; name one here")
    errors = write_reversible(_pinned(recipe), place, rank=rank, progress=progress)
    experts = zip(recipe.experts, errors, strict=True)
    return [
        f"{recipe.sources[position].path}: restored to within {error:.3g} of its step from the base"
        for position, error in experts
    ]


def _checkpoint(
    recipe: Recipe, to: Path, *, card: str, memory_limit: str | None, progress: Progress | None
) -> list[str]:
    from evomerge.merging.export import write_checkpoint
    from evomerge.merging.memory import parse_bytes

    remarks: list[str] = []
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    write_checkpoint(recipe, to, progress=progress, card=card, warn=remarks.append, memory_limit=limit)
    return remarks


def _pinned(recipe: Recipe) -> Recipe:
    from evomerge.merging.sources import pin, verify, with_tokenizers

    for source in recipe.sources:
        if source.digest is not None or source.tokenizer is not None:
            verify(source)
    return with_tokenizers(recipe.model_copy(update={"sources": tuple(map(pin, recipe.sources))}))


def _as_recorded(recipe: Recipe, plan: Mapping[str, Any]) -> Recipe:
    """Return ``recipe`` with the tokenizers that its search recorded."""
    from evomerge.merging.sources import TOKENIZERS, with_tokenizers

    sources = [(source["path"], source["digest"]) for source in plan["sources"]]
    return with_tokenizers(recipe, dict(zip(sources, plan.get(TOKENIZERS, ()), strict=False)))
