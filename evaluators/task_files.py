"""Finds the file of a task, and refuses files that would run code without the user's trust.

Loading an lm-eval task is code execution: `!function` imports a Python file, `class` and `custom_dataset` run one,
an unknown metric is fetched from a hub and run, the `pandas` data set reader unpickles. All of that is refused
outside the folders in `trusted_paths`; lm-eval's own tasks count as trusted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.api.metrics  # noqa: F401 - fills the registry that is read below
import lm_eval.tasks
import yaml
from lm_eval.api.registry import metric_registry
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from evaluators.errors import TaskError

_BUILT_IN = Path(lm_eval.tasks.__file__).resolve().parent
_RUNS_CODE = ("class", "custom_dataset", "use_prompt")
_UNPICKLES = ("pandas",)
_EXECUTING_METRICS = ("code_eval",)
_SKIPPED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}


def open_index(names: Sequence[str], include_path: Sequence[str]) -> TaskManager:
    """Return an lm-eval task manager that knows every one of ``names``.

    lm-eval's own index (some 11 seconds) is read only when a name is not in the user's folders.

    Raises:
        TaskError: a folder does not exist; a name is in none of them (close names, and files that cannot be read,
            are listed); a name is a group or a tag (its members are listed).
    """
    folders = [_folder(path) for path in include_path]
    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    missing = [name for name in names if name not in manager.task_index]
    if missing:
        broken = dict(_unreadable(folders))
        for name in missing:
            if problem := broken.get(name):
                raise TaskError(f"task {name}: {problem}")
        manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=True)
        for name in missing:
            if name not in manager.task_index:
                raise TaskError(_unknown(name, manager.all_tasks, include_path, broken))
    for name in names:
        _refuse_group(manager.task_index[name], manager.task_index)
    return manager


def is_trusted(entry: Entry, trusted_paths: Sequence[str]) -> bool:
    """Whether the task's own file is lm-eval's or lies in one of ``trusted_paths``."""
    return _inside(Path(entry.yaml_path), trusted_paths)


def executes_code(entry: Entry) -> bool:
    """Whether judging the task's answers executes them: it says so, or has a metric that does."""
    config = load_yaml(entry.yaml_path, resolve_func=False)
    metrics = (m.get("metric") for m in config.get("metric_list") or [] if isinstance(m, Mapping))
    return bool(config.get("unsafe_code")) or any(metric in _EXECUTING_METRICS for metric in metrics)


def refuse_unsafe(entry: Entry, trusted_paths: Sequence[str], *, allow_code_execution: bool) -> None:
    """Refuse a task whose files would run code.

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
            for what in _code_in(path):
                raise TaskError(
                    f"task {entry.name}: {path} uses {what}, which runs code; "
                    f"if you trust it add {str(path.parent)!r} to trusted_paths"
                )


def _folder(path: str) -> Path:
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise TaskError(f"include_path: {path!r} is not a folder ({folder})")
    return folder


def _unreadable(folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Task files that lm-eval skips without a word, by their stem, with the reason."""
    for folder in folders:
        for path in sorted(folder.glob("**/*.yaml")):
            if _SKIPPED_FOLDERS.isdisjoint(path.parts):
                try:
                    load_yaml(path, resolve_func=False)
                except (ValueError, OSError, RecursionError, yaml.YAMLError) as error:
                    yield path.stem, f"{path} cannot be read: {' '.join(str(error).split())}"


def _unknown(name: str, known: Sequence[str], folders: Sequence[str], broken: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    where = f"lm-eval's tasks or include_path ({', '.join(folders) or 'none given'})"
    hint = f"; close to it: {', '.join(near)}" if near else ""
    skipped = f"; files that cannot be read: {'; '.join(broken.values())}" if broken else ""
    return f"task {name!r} is not in {where}{hint}{skipped}"


def _refuse_group(entry: Entry, index: Mapping[str, Entry]) -> None:
    if entry.kind is Kind.TAG:
        members = sorted(entry.tags)
    elif entry.kind is Kind.GROUP:
        members = sorted(_member_names((entry.cfg or {}).get("task")))
    else:
        return
    shown = ", ".join(members[:20]) + (f" and {len(members) - 20} more" if len(members) > 20 else "")
    raise TaskError(f"{entry.name} is a {entry.kind.name.lower()} of tasks; name them one by one: {shown}")


def _member_names(members: Any) -> Iterator[str]:
    for member in members if isinstance(members, list) else [members]:
        if isinstance(member, Mapping):
            yield from _member_names(member.get("task", member.get("group")))
        elif member is not None:
            yield str(member)


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
    config = load_yaml(path, resolve_func=False, recursive=False)
    yield from (f"`{key}`" for key in _RUNS_CODE if config.get(key) is not None)
    if config.get("dataset_path") in _UNPICKLES:
        yield f"`dataset_path: {config['dataset_path']}`"
    metrics = config.get("metric_list") or []
    for metric in (m for m in metrics if isinstance(m, Mapping)):
        if metric.get("hf_evaluate") or metric.get("metric") not in metric_registry:
            yield f"metric {metric.get('metric')!r} (not one of lm-eval's)"


def _foreign_tags(node: yaml.Node | None) -> Iterator[str]:
    """Tags that are not plain YAML: `!function`, `!!python/...`."""
    if node is None:
        return
    standard = node.tag.startswith("tag:yaml.org,2002:") and not node.tag.startswith("tag:yaml.org,2002:python/")
    if not standard:
        yield f"`{node.tag}`"
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _foreign_tags(child)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _foreign_tags(key)
            yield from _foreign_tags(value)
