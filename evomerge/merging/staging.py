"""Sources at fsspec URLs (s3://, gs://, ...): copied once per node into the user's cache, then mapped from there.

A copy's name follows from what the store says of its files (sizes, versions), so changed files are copied anew. Copies
are made under a lock and appear by rename: the workers of a node wait for the first, and none sees half a copy.
"""

from __future__ import annotations

import hashlib
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from evaluators.errors import one_line
from evomerge.atomic import alone
from evomerge.errors import BadSource


def is_url(path: str) -> bool:
    """Return whether ``path`` names a store by its protocol."""
    return "://" in path


def staged(url: str, *, patterns: tuple[str, ...], cache: Path) -> Path:
    """Return the folder of this node's copy of the model at ``url``, made now if it is not there.

    Args:
        patterns: which files are copied, by their place below ``url``.

    Raises:
        BadSource: the store cannot be reached, or has no model there.
    """
    try:
        store, root = _open(url)
        files = {
            name: info
            for path, info in store.find(root, detail=True).items()
            if any(fnmatch(name := path[len(root) :].lstrip("/"), pattern) for pattern in patterns)
        }
        if not files:
            raise BadSource(f"{url}: there is no model (no safetensors, no config.json)")
        versions = "".join(
            f"{name}\0{info.get('size')}\0{store.ukey(info['name'])}\n" for name, info in sorted(files.items())
        )
        folder = cache / "sources" / hashlib.sha256(f"{url}\n{versions}".encode()).hexdigest()[:32]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_suffix(".lock")):
            if not folder.exists():
                _copy(store, {name: info["name"] for name, info in files.items()}, folder)
    except BadSource:
        raise
    except Exception as error:  # every store has errors of its own
        text = one_line(error)
        raise BadSource(f"{url}: cannot be copied to this machine ({text})") from None
    return folder


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        store, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise BadSource(f"{url}: {one_line(error)}") from None
    return store, str(root).rstrip("/")


def _copy(store: Any, files: dict[str, str], folder: Path) -> None:
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)  # of a copy that was broken off
    for name, path in files.items():
        target = part / name
        if not target.resolve().is_relative_to(part.resolve()):
            raise BadSource(f"{path}: leads out of the model's folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(path, str(target))
    part.rename(folder)
