"""lm-eval's index of tasks, groups and tags: what a name stands for.

Groups may hold tasks, tags, other groups, and tasks or groups written out inside them; each may change settings of
what it names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from evaluators.errors import TaskError, one_line

_SKIPPED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}


@dataclass(frozen=True)
class Closure:
    """Everything behind a name: the entries with a file of their own, and the names that are in no index."""

    entries: tuple[Entry, ...]
    missing: tuple[str, ...]


def open_index(names: Sequence[str], include_path: Sequence[str]) -> TaskManager:
    """Return an lm-eval task manager that knows every one of ``names``, and what they stand for.

    lm-eval's own index (some 11 seconds) is read only when a name is not in the user's folders.

    Raises:
        TaskError: a folder does not exist; a name, or one that a group holds, is in none of them (close names, and
            files that cannot be read, are listed).
    """
    folders = [_folder(path) for path in include_path]
    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    if any(closure(name, manager.task_index).missing for name in names):
        broken = dict(_unreadable(folders))
        for name in names:
            if name not in manager.task_index and (problem := broken.get(name)):
                raise TaskError(f"task {name}: {problem}")
        manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=True)
        for name in names:
            for missing in closure(name, manager.task_index).missing:
                within = "" if missing == name else f" of {name}"
                raise TaskError(_unknown(missing, within, manager.all_tasks, include_path, broken))
    return manager


def closure(name: str, index: Mapping[str, Entry]) -> Closure:
    """Return what ``name`` stands for, itself included; every entry once."""
    found: dict[str, Entry | None] = {}
    _walk(name, index, found)
    files = tuple(entry for entry in found.values() if entry is not None and entry.yaml_path is not None)
    return Closure(files, tuple(each for each, entry in found.items() if entry is None))


def members(config: Mapping[str, Any]) -> list[Any]:
    """Return what a group's configuration holds: names, or mappings that name or are a task or group."""
    listed = config.get("task")
    return listed if isinstance(listed, list) else []


def _walk(name: str, index: Mapping[str, Entry], found: dict[str, Entry | None]) -> None:
    if name in found:
        return
    entry = found[name] = index.get(name)
    if entry is not None and entry.kind is Kind.TAG:
        for task in sorted(entry.tags):
            _walk(task, index, found)
    elif entry is not None and entry.kind is Kind.GROUP:
        for member in members(entry.cfg or {}):
            _walk_member(member, index, found)


def _walk_member(member: Any, index: Mapping[str, Entry], found: dict[str, Entry | None]) -> None:
    if not isinstance(member, Mapping):
        _walk(str(member), index, found)
        return
    name = str(member.get("group", member.get("task")))
    if name in index or not _is_written_out(member):
        _walk(name, index, found)
    elif "group" in member:
        for each in members(member):
            _walk_member(each, index, found)


def _is_written_out(member: Mapping[str, Any]) -> bool:
    return "group" in member or "dataset_path" in member


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
                    yield path.stem, f"{path} cannot be read: {one_line(error)}"


def _unknown(name: str, within: str, known: Sequence[str], folders: Sequence[str], broken: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    where = f"lm-eval's tasks or include_path ({', '.join(folders) or 'none given'})"
    hint = f"; close to it: {', '.join(near)}" if near else ""
    skipped = f"; files that cannot be read: {'; '.join(broken.values())}" if broken else ""
    return f"task {name!r}{within} is not in {where}{hint}{skipped}"
