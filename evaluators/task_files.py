"""Refuses task files that would run code without the user's trust.

Loading an lm-eval task is code execution: `!function` imports a Python file, `class` and `custom_dataset` run one,
an unknown metric is fetched from a hub and run, the `pandas` data set reader unpickles. All of that is refused
outside the folders in `trusted_paths`; lm-eval's own tasks count as trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.api.metrics  # noqa: F401 - fills the registry that is read below
import lm_eval.tasks
import yaml
from lm_eval.api.registry import metric_registry
from lm_eval.tasks._index import Entry
from lm_eval.tasks._yaml_loader import load_yaml

from evaluators.errors import TaskError
from evaluators.task_index import members

_BUILT_IN = Path(lm_eval.tasks.__file__).resolve().parent
_RUNS_CODE = ("class", "custom_dataset", "use_prompt")
_UNPICKLES = ("pandas",)
EXECUTING_METRICS = ("code_eval",)


def is_trusted(entry: Entry, trusted_paths: Sequence[str]) -> bool:
    """Whether the task's own file is lm-eval's or lies in one of ``trusted_paths``."""
    return _inside(Path(entry.yaml_path), trusted_paths)


def executes_code(entry: Entry) -> bool:
    """Whether judging the task's answers executes them: it says so, or has a metric that does."""
    config = load_yaml(entry.yaml_path, resolve_func=False)
    metrics = (m.get("metric") for m in config.get("metric_list") or [] if isinstance(m, Mapping))
    return bool(config.get("unsafe_code")) or any(metric in EXECUTING_METRICS for metric in metrics)


def refuse_unsafe(entry: Entry, trusted_paths: Sequence[str], *, allow_code_execution: bool) -> None:
    """Refuse a task or group whose files would run code.

    Raises:
        TaskError: the task executes what models write, and that is not allowed; or one of its files outside
            ``trusted_paths`` names Python, a metric that lm-eval does not ship, or a data set reader that unpickles.
    """
    if not allow_code_execution and executes_code(entry):
        raise TaskError(
            f"task {entry.name} ({entry.yaml_path}) executes code that models write (unsafe_code or code_eval); if you "
            "want that set evaluation.allow_code_execution: true (evaluate: --allow-code-execution)"
        )
    for path in _with_includes(Path(entry.yaml_path)):
        if not _inside(path, trusted_paths):
            try:
                found = list(_code_in(path))
            except RecursionError:
                raise TaskError(f"task {entry.name}: {path} is nested too deeply") from None
            if found:
                raise TaskError(
                    f"task {entry.name}: {path} uses {found[0]}, which runs code; "
                    f"if you trust it add {str(path.parent)!r} to trusted_paths"
                )


def _inside(path: Path, trusted_paths: Sequence[str]) -> bool:
    roots = [_BUILT_IN, *(Path(root).expanduser().resolve() for root in trusted_paths)]
    return any(path.resolve().is_relative_to(root) for root in roots)


def _with_includes(path: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The file and everything it includes, as lm-eval resolves includes (a cycle was refused by the index)."""
    path = path.resolve()
    if path in seen:
        return
    yield path
    included = load_yaml(path, resolve_func=False, recursive=False).get("include", [])
    for name in included if isinstance(included, list) else [included]:
        yield from _with_includes(path.parent / Path(name), seen | {path})


def _code_in(path: Path) -> Iterator[str]:
    """Names of what in the file would run code."""
    with path.open("rb") as file:
        root = yaml.compose(file, Loader=yaml.SafeLoader)
    yield from sorted(set(_foreign_tags(root)))
    yield from _code_in_config(load_yaml(path, resolve_func=False, recursive=False))


def _code_in_config(config: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"`{key}`" for key in _RUNS_CODE if config.get(key) is not None)
    if config.get("dataset_path") in _UNPICKLES:
        yield f"`dataset_path: {config['dataset_path']}`"
    metrics = config.get("metric_list") or []
    for metric in (m for m in metrics if isinstance(m, Mapping)):
        if metric.get("hf_evaluate") or metric.get("metric") not in metric_registry:
            yield f"metric {metric.get('metric')!r} (not one of lm-eval's)"
    for member in members(config):  # what a group changes in its tasks, or writes out itself
        if isinstance(member, Mapping):
            yield from _code_in_config(member)


def _foreign_tags(node: yaml.Node | None, seen: set[int] | None = None) -> Iterator[str]:
    """Tags that are not plain YAML: `!function`, `!!python/...`. ``seen``: nodes that aliases may name again."""
    seen = set() if seen is None else seen
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    standard = node.tag.startswith("tag:yaml.org,2002:") and not node.tag.startswith("tag:yaml.org,2002:python/")
    if not standard:
        yield f"`{node.tag}`"
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _foreign_tags(child, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _foreign_tags(key, seen)
            yield from _foreign_tags(value, seen)
