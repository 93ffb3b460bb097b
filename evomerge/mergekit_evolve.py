"""Reading the configuration of mergekit-evolve into a search file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evomerge.config import read_mapping
from evomerge.errors import BadSearch
from search_spaces.near_names import hint
from search_spaces.presets import mergekit_evolve

GENOME_KEYS = {
    "models",
    "merge_method",
    "base_model",
    "layer_granularity",
    "normalize",
    "allow_negative_weights",
    "filters",
    "smooth",
    "tokenizer_source",
}
CONFIG_KEYS = {
    "genome",
    "tasks",
    "limit",
    "num_fewshot",
    "shuffle",
    "random_init",
    "apply_chat_template",
    "fewshot_as_multiturn",
}


def convert(path: Path, *, layers_of: Any) -> dict[str, Any]:
    """Return the mapping of a search file that does what mergekit-evolve's ``path`` asks for.

    Args:
        layers_of: called with the first model's path, returns its number of layers; asked only when the file
            groups layers.

    Raises:
        BadSearch: a key or a value that has no counterpart; it is named.
    """
    value = read_mapping(path)
    genome = value.get("genome")
    if not isinstance(genome, dict):
        raise BadSearch(f"{path}: expected mergekit-evolve's `genome` section")
    _refuse_unknown(path, "", value, CONFIG_KEYS)
    _refuse_unknown(path, "genome.", genome, GENOME_KEYS)
    method = genome.get("merge_method")
    models = [str(model) for model in genome.get("models") or []]
    base = genome.get("base_model")
    if not models or not isinstance(method, str):
        raise BadSearch(f"{path}: genome.models and genome.merge_method are needed")
    if base is None:
        base = models[0]
    granularity = int(genome.get("layer_granularity") or 0)
    layers = layers_of(models[0]) if granularity > 0 else 1
    try:
        space = mergekit_evolve(
            method,
            experts=len(models),
            layers=layers,
            layer_granularity=max(granularity, 0),
            smooth=bool(genome.get("smooth", False)),
        )
    except ValueError as error:
        raise BadSearch(f"{path}: {error}") from None
    changes: dict[str, Any] = {}
    if genome.get("normalize") is not None:
        changes["normalize"] = bool(genome["normalize"])
    if genome.get("allow_negative_weights"):
        changes["weight"] = (-1.5, 1.5)
    if genome.get("filters"):
        changes["tensor_groups"] = tuple({name: (f"*{name}*",)} for name in genome["filters"])
    space = type(space).model_validate({**space.model_dump(), **changes})
    experts = [model for model in models if model != base] or models
    return {
        "name": path.stem.replace(" ", "-"),
        "sources": {"base": base, "experts": experts, "dtype": "bfloat16", **_vocabulary(path, genome, base, experts)},
        "space": space.model_dump(mode="json", exclude_defaults=True) | {"kind": "parameter", "operator": method},
        "objectives": [_objective(path, task) for task in value.get("tasks") or []],
        "evaluation": _evaluation(value),
    }


def _vocabulary(path: Path, genome: dict[str, Any], base: Any, experts: list[str]) -> dict[str, str]:
    """Return `sources.vocabulary`, if the file says whose tokens are kept."""
    source = genome.get("tokenizer_source")
    if source is None:
        return {}
    if source in ("union", "base", base):
        return {"vocabulary": "union" if source == "union" else "base"}
    if source not in experts:
        raise BadSearch(f"{path}: genome.tokenizer_source {source!r} is neither union, base nor one of the models")
    return {"vocabulary": source.rstrip("/").rpartition("/")[2]}


def _objective(path: Path, task: Any) -> dict[str, Any]:
    if not isinstance(task, dict) or "name" not in task:
        raise BadSearch(f"{path}: each of tasks needs a name, got {task!r}")
    weight = float(task.get("weight", 1.0))
    return {
        "task": task["name"],
        "metric": task.get("metric", "acc,none"),
        "direction": "maximize" if weight > 0 else "minimize",
        "weight": abs(weight),
    }


def _evaluation(value: dict[str, Any]) -> dict[str, Any]:
    evaluation: dict[str, Any] = {"apply_chat_template": bool(value.get("apply_chat_template", True))}
    if value.get("limit"):
        evaluation["search_documents"] = int(value["limit"])
    if value.get("num_fewshot") is not None:
        evaluation["num_fewshot"] = int(value["num_fewshot"])
    return evaluation


def _refuse_unknown(path: Path, place: str, value: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(value) - known)
    if unknown:
        raise BadSearch(f"{path}: unknown key {place}{unknown[0]}{hint(unknown[0], sorted(known))}")
