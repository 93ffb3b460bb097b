"""What a report says in words and tables, as plain values for its template."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import time
from collections.abc import Sequence
from typing import Any

import yaml

import evomerge
from evaluators.objective_kinds import AnyObjective
from evomerge.columns import NONE, SPLITS
from evomerge.records import CandidateRecord
from evomerge.results import JOINT, Results, Row
from evomerge.selection import SINGLE
from evomerge.standing import standing
from evomerge.storage_url import masked
from evomerge.tables import interval
from search_spaces.recipe import PathBody, Recipe
from search_spaces.tiles import MosaicBody

MOST_FRONT_ROWS = 60
VERSIONED = ("torch", "transformers", "lm-eval", "ray", "cma", "numpy", "plotly")


def facts(results: Results, others: Sequence[Results]) -> dict[str, Any]:
    """Return the values that the template shows, all of them unescaped."""
    rows = results.table(others)
    several = len(results.objectives) > 1
    chosen_one = chosen(results)
    return {
        "name": results.record.name,
        "summary": _summary(results, rows),
        "warnings": _warnings(results),
        "facts": headline_facts(results),
        "rows": rows,
        "columns": ([{"name": JOINT, "title": JOINT, "detail": ""}] if several else [])
        + [_column(objective) for objective in results.objectives],
        "joint": JOINT if several else None,
        "joint_is_scaled": results.joint_is_scaled,
        "titles": [objective.name for objective in results.objectives],
        "front": _front_rows(results),
        "front_size": len(results.front),
        "volume": several,
        "compared": ", ".join(other.record.name for other in others),
        "recipe": _recipe(results, chosen_one) if chosen_one else None,
        "export": export_command(results, chosen_one) if chosen_one else None,
        "run": "evomerge run search.yaml",
        "storage": masked(results.record.store.storage),
        "search_file": _search_file(results),
        "tasks": _tasks(results),
        "costs": costs(results),
        "failures": failures(results),
        "sources": _sources(results),
        "inspection": results.inspection,
        "suite": results.record.row.plan["suite"],
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
        "versions": _versions(),
    }


def chosen(results: Results) -> CandidateRecord | None:
    """Return the winner, or before there is one the candidate that is preferred on search documents."""
    return results.winner or next(iter(results.front), None)


def _summary(results: Results, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The first sentence, in parts of which some are strong."""
    winner = next((row for row in rows if row.role == "winner"), None)
    if winner is None:
        return [{"text": _unfinished(results), "strong": False}]
    name = JOINT if len(results.objectives) > 1 else results.objectives[0].name
    sign = 1.0 if name == JOINT else results.objectives[0].sign
    what = "the joint objective of" if name == JOINT else f"{name} of"
    parts = [
        (f"The winner, {winner.candidate.label}, scores ", False),
        (interval(winner.estimates[name]), True),
        (f" on {what} held-out test documents", False),
        ("." if sign > 0 else " (less is better).", False),
    ]
    if compared := _compared(rows, name, sign):
        parts.append((f" For comparison: {compared}. Brackets are 95 % intervals.", False))
    return [{"text": text, "strong": strong} for text, strong in parts]


def _compared(rows: Sequence[Row], name: str, sign: float) -> str:
    """The best expert and the other rows with their scores, the closest rivals first."""
    experts = [row for row in rows if row.role == "expert"]
    best = max(experts, key=lambda row: sign * row.estimates[name].value, default=None)
    others = [row for row in rows if row.role not in ("winner", "expert") or row is best]
    others.sort(key=lambda row: -sign * row.estimates[name].value)
    return ", ".join(f"{_phrase(row)} {interval(row.estimates[name])}" for row in others)


def _phrase(row: Row) -> str:
    known = {
        "base": "the base",
        "uniform average": "the uniform average",
        "expert": f"the best expert ({row.label})",
        "single coefficient": f"the best {SINGLE} ({row.label.removeprefix(SINGLE).strip()})",
    }
    return known.get(row.role, f"the {row.label}")


def _unfinished(results: Results) -> str:
    budget = results.file.budget.evaluations
    done = f"{results.spent:,} of {budget:,} evaluations are done"
    if results.winner:
        return f"The winner is chosen, but not yet measured on test documents. {done[0].upper()}{done[1:]}."
    if results.front:
        leader = results.front[0]
        return (
            f"This search has no winner yet: {done}. So far {leader.label} is preferred on search documents; "
            "scores there are not quoted as results."
        )
    return f"This search has no winner yet: {done}, and no candidate has been measured."


def _warnings(results: Results) -> list[str]:
    failed, all_evaluations = sum(results.failures.values()), len(results.candidates.evaluations.ids)
    if failed > 0.2 * all_evaluations:
        return [f"{failed} of {all_evaluations} evaluations failed; the kinds are listed below."]
    return []


def headline_facts(results: Results) -> list[dict[str, str]]:
    """Return name and value of the facts at the head of a report."""
    file = results.file
    pairs = [
        ("state", standing(results).words),
        ("evaluations", f"{results.spent:,} of {file.budget.evaluations:,}"),
        *([("estimated from some documents", f"{results.stopped:,}")] if results.stopped else []),
        *([("search stopped", results.stop_reason)] if results.stop_reason else []),
        ("models on the front", f"{len(results.front):,}"),
        ("objectives", str(len(results.objectives))),
        ("experts", str(len(file.sources.experts))),
        ("genes", "a mosaic" if file.space.kind == "mosaic" else f"{len(results.record.row.plan['genes']):,}"),
        ("optimizer, seed", f"{results.optimizer}, {file.optimizer.seed}"),
        ("wall time", duration(results.record.row.seconds)),
    ]
    return [{"name": name, "value": value} for name, value in pairs]


def duration(seconds: float) -> str:
    """Return a duration for people: ``4.2 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def _column(objective: AnyObjective) -> dict[str, str]:
    less = "" if objective.sign > 0 else ", less is better"
    return {"name": objective.name, "title": objective.title, "detail": f"{objective.detail}{less}".removeprefix(", ")}


def _front_rows(results: Results) -> list[dict[str, Any]]:
    names, chooser = results.chooser.names, results.chooser
    lines = []
    for candidate in results.front[:MOST_FRONT_ROWS]:
        values = candidate.values("search", names)
        validated = candidate.values("validation", names) is not None
        lines.append(
            {
                "label": candidate.label,
                "winner": candidate == results.winner,
                "scores": [] if values is None else values.tolist(),
                "preference": chooser.number(candidate, "search"),
                "validation": chooser.number(candidate, "validation") if validated else None,
            }
        )
    return lines


def _recipe(results: Results, candidate: CandidateRecord) -> dict[str, Any]:
    recipe = candidate.recipe
    title = "the winner" if candidate == results.winner else "the candidate preferred so far"
    return {
        "title": f"{title} ({candidate.label})",
        "about": f"{body_in_words(results, recipe)} Written as {recipe.dtype}.",
        "digest": candidate.recipe_digest,
        "json": json.dumps(json.loads(candidate.recipe_json), indent=1, ensure_ascii=False),
    }


def body_in_words(results: Results, recipe: Recipe) -> str:
    """Return what a figure of the recipe shows, in words."""
    if isinstance(recipe.body, MosaicBody):
        return (
            f"A mosaic of {sum(len(c.coefficients) for c in recipe.body.chromosomes):,} segments. Each cell is the "
            f"coefficient of one source in one segment; positions count tiles of {recipe.body.tile:,} elements, with "
            "the tensors in the order of their names."
        )
    if isinstance(recipe.body, PathBody):
        return _path_in_words(recipe.body)
    kinds = sorted({block.operator.kind for block in recipe.body.blocks})
    return (
        f"Operator {', '.join(kinds)}. Each cell is one model in a range of {results.record.row.plan['layers']} "
        "layers; embeddings count as the first layer, final norm and head as the last."
    )


def _path_in_words(body: PathBody) -> str:
    merges = len(body.merged_slots)
    made = (
        f" {merges} of these models {'is a merge' if merges == 1 else 'are merges'} (see the recipe)." if merges else ""
    )
    return (
        f"A path of {len(body.hops)} layers through {len(body.slots)} model{'s' if len(body.slots) > 1 else ''}.{made} "
        "Embeddings, final norm and head are those of the first. A scale multiplies the residual stream before the "
        "layer; export folds it into the weights."
    )


def export_command(results: Results, candidate: CandidateRecord) -> str:
    """Return the command that writes ``candidate`` as a checkpoint."""
    name = results.record.name
    words = ["evomerge", "export", name, "--candidate", str(candidate.number), "--to", f"{name}-{candidate.number}"]
    storage = results.record.store.storage
    if storage != evomerge.DEFAULT_STORAGE:
        words += ["--storage", masked(storage)]
    return shlex.join(words)


def _search_file(results: Results) -> str:
    value = results.file.model_dump(mode="json", exclude_defaults=True)
    value["storage"] = masked(results.file.storage)
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def _tasks(results: Results) -> list[dict[str, Any]]:
    documents = results.record.row.plan["documents"]
    return [
        {"name": name, "counts": [len(documents[split].get(name, ())) for split in SPLITS]}
        for name in documents["search"]
    ]


def costs(results: Results) -> list[dict[str, Any]]:
    """Return what new evaluations took, a line a split."""
    lines, costs = [], results.costs
    for split in SPLITS:
        cost = costs.get(split)
        if cost is None:
            continue
        fresh = results.fresh[split]
        failed = int((results.candidates.evaluations.failures[fresh] != NONE).sum())
        times = [duration(s) for s in (cost.merge_seconds, cost.forward_seconds, cost.seconds)]
        cells = [f"{len(fresh):,}", f"{failed:,}", *times, f"{cost.documents:,}", f"{cost.tokens:,}"]
        lines.append({"split": split, "cells": cells})
    return lines


def failures(results: Results) -> list[dict[str, Any]]:
    """Return failed evaluations by kind, the most frequent first, each with the last message."""
    pairs = sorted(results.failures.items(), key=lambda pair: -pair[1])
    lines = []
    for kind, count in pairs:
        candidate, failure = results.last_failure(kind)
        lines.append({"kind": kind.replace("_", " "), "count": count, "candidate": candidate, "message": failure})
    return lines


def _sources(results: Results) -> list[dict[str, Any]]:
    names = [source.short_name for source in (results.file.sources.base, *results.file.sources.experts)]
    pinned = results.record.row.plan["sources"]
    return [{"name": name, **source} for name, source in zip(names, pinned, strict=True)]


def _versions() -> str:
    found = [f"evomerge {evomerge.__version__}", f"Python {platform.python_version()}"]
    for package in VERSIONED:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # optional here: a report can be written where nothing is trained
    return ", ".join(found)
