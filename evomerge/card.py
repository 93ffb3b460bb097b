"""The model card of an exported checkpoint: what was merged, how it was found, how it scores."""

from __future__ import annotations

import re
from typing import Any

import yaml

import evomerge
from evomerge.records import CandidateRecord, Split
from evomerge.results import JOINT, Results
from evomerge.tables import interval
from search_spaces.recipe import Recipe

MOST_RECIPE_CHARACTERS = 20_000  # of a recipe that stands in the card
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def plain_card(recipe: Recipe, title: str) -> str:
    """Return the card of a merge that no search found."""
    return "\n".join([_front_matter(recipe, []), f"# {title}", "", *_sources(recipe), "", *_rebuild(recipe)])


def search_card(results: Results, candidate: CandidateRecord, recipe: Recipe | None = None) -> str:
    """Return the card of a candidate of a search, with its test scores where they were measured.

    ``recipe`` is what is written of it, by default what was measured."""
    recipe, name = recipe or candidate.recipe, f"{results.record.name}: {candidate.label}"
    lines = [_front_matter(recipe, _model_index(results, candidate, name)), f"# {_plain(name)}", ""]
    lines += [
        f"Found by evomerge {evomerge.__version__} after {results.spent} evaluations "
        f"({results.optimizer}, seed {results.file.optimizer.seed}).",
        "",
    ]
    lines += [*_sources(recipe), "", *_scores(results, candidate), ""]
    return "\n".join([*lines, *_rebuild(recipe)])


def _scores(results: Results, candidate: CandidateRecord) -> list[str]:
    held_out: dict[Split, str] = {
        "test": "held-out test documents",
        "validation": "validation documents (used to choose it)",
    }
    for split, words in held_out.items():
        if estimates := results.estimate(candidate, split):
            names = (JOINT, *results.chooser.names) if len(results.objectives) > 1 else results.chooser.names
            rows = [f"| {_plain(name)} | {interval(estimates[name])} |" for name in names]
            return [f"Scores on {words}, with 95 % intervals:", "", "| objective | score |", "|---|---|", *rows]
    return ["This candidate was measured on search documents only: its scores there are not quoted as results."]


def _front_matter(recipe: Recipe, model_index: list[dict[str, Any]]) -> str:
    """The metadata that the Hub reads; a folder is no `base_model`, which must be a Hub id."""
    known = [source.path for source in recipe.sources if _HUB_ID.fullmatch(source.path)]
    meta: dict[str, Any] = {
        **({"base_model": known, "base_model_relation": "merge"} if known else {}),
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
        **({"model-index": model_index} if model_index else {}),
    }
    return f"---\n{yaml.safe_dump(meta, sort_keys=False, allow_unicode=True)}---\n"


def _model_index(results: Results, candidate: CandidateRecord, name: str) -> list[dict[str, Any]]:
    """Test scores in the Hub's form; empty without them."""
    estimates = results.estimate(candidate, "test")
    found = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": objective.title, "type": objective.title},
            "metrics": [
                {
                    "type": objective.detail or objective.title,
                    "value": round(estimates[objective.name].value, 6),
                    "name": f"{objective.name}, held-out documents: {interval(estimates[objective.name])} (95 %)",
                }
            ],
        }
        for objective in results.objectives
        if objective.name in estimates
    ]
    return [{"name": name, "results": found}] if found else []


def _sources(recipe: Recipe) -> list[str]:
    from evomerge.merging.preparations import file_name

    lines = ["Merged from:", ""]
    for position, source in enumerate(recipe.sources):
        role = "base" if position == recipe.base else "expert"
        digest = f", content `{source.digest[:16]}`" if source.digest else ""
        prepared = f", prepared as `{file_name(source.preparation)}` says" if source.preparation else ""
        lines.append(f"- {role} `{source.path.replace('`', '')}`{digest}{prepared}")
    return lines


def _rebuild(recipe: Recipe) -> list[str]:
    text = recipe.to_json()
    how = f"rebuilds it{_exactness(recipe)}: `evomerge merge recipe.json --to FOLDER`."
    lines = [f"`recipe.json` beside this file {how}", ""]
    if len(text) > MOST_RECIPE_CHARACTERS:
        return lines
    return [*lines, "<details><summary>The recipe</summary>", "", "```json", text, "```", "", "</details>", ""]


def _exactness(recipe: Recipe) -> str:
    from evomerge.merging.calibrations import named_in
    from evomerge.merging.virtual import Spectral
    from search_spaces.operators import Knots

    if named_in(recipe):
        return (
            ", from statistics of its sources on the prompts in `calibration-*.json` (bit for bit on an equal machine "
            "with as many threads; others round the statistics differently)"
        )
    if any(isinstance(operator, Spectral | Knots) for operator in recipe.operators):
        return " (bit for bit on an equal machine with as many threads; others decompose matrices differently)"
    return " bit for bit"


def _plain(text: str) -> str:
    """``text`` as a text of Markdown, on one line: no table cell ends in it, no markup begins."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
