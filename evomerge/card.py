"""The model card of an exported checkpoint: what was merged, how it was found, how it scores."""

from __future__ import annotations

from typing import Any

import yaml

import evomerge
from evomerge.records import CandidateRecord
from evomerge.results import JOINT, Results
from evomerge.tables import interval
from search_spaces.recipe import Recipe


def plain_card(recipe: Recipe, title: str) -> str:
    """Return the card of a merge that no search found."""
    return "\n".join([_front_matter(recipe), f"# {title}", "", *_sources(recipe), "", *_rebuild()])


def search_card(results: Results, candidate: CandidateRecord) -> str:
    """Return the card of a candidate of a search, with its test scores where they were measured."""
    recipe = candidate.recipe
    lines = [_front_matter(recipe), f"# {results.record.name}: {candidate.label}", ""]
    lines += [
        f"Found by [evomerge] {evomerge.__version__} after {results.spent} evaluations "
        f"({results.optimizer}, seed {results.file.optimizer.seed}).",
        "",
    ]
    lines += [*_sources(recipe), ""]
    split = (
        "test" if "test" in candidate.evaluations else "validation" if "validation" in candidate.evaluations else None
    )
    if split:
        held_out = "held-out test documents" if split == "test" else "validation documents (used to choose it)"
        lines += [f"Scores on {held_out}, with 95 % intervals:", "", "| objective | score |", "|---|---|"]
        estimates = results.estimate(candidate, "test" if split == "test" else "validation")
        lines += [f"| {name} | {interval(estimates.get(name))} |" for name in (JOINT, *results.chooser.names)]
    else:
        lines += ["This candidate was measured on search documents only: its scores there are not quoted as results."]
    return "\n".join([*lines, "", *_rebuild()])


def _front_matter(recipe: Recipe) -> str:
    meta: dict[str, Any] = {
        "base_model": [source.path for source in recipe.sources],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
    }
    return f"---\n{yaml.safe_dump(meta, sort_keys=False)}---\n"


def _sources(recipe: Recipe) -> list[str]:
    lines = ["Merged from:", ""]
    for position, source in enumerate(recipe.sources):
        role = "base" if position == recipe.base else "expert"
        digest = f", content `{source.digest[:16]}`" if source.digest else ""
        lines.append(f"- {role} `{source.path}`{digest}")
    return lines


def _rebuild() -> list[str]:
    return ["`recipe.json` beside this file rebuilds it bit for bit: `evomerge merge recipe.json --to FOLDER`.", ""]
