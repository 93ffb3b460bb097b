"""Where exports and reports go: a path here, or an fsspec URL (s3://, ...) by way of a local temporary folder."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from evaluators.errors import one_line
from evomerge.errors import UserMistake
from evomerge.merging.staging import is_url

Place: TypeAlias = str | Path
LAST = ("config.json", "adapter_config.json")  # without these nobody takes a folder for a model


@contextmanager
def local(to: Place, *, replace: bool = False) -> Iterator[Path]:
    """Yield the path at which to write what shall be at ``to``, a file or a folder.

    What lies there when the context ends without an error is copied to the store; the size of every file is compared.
    A file appears whole: it is written under another name and moved. Of a folder, `LAST` come after all other files,
    so that a model that can be loaded is complete. What was copied before an error is taken away again.

    Args:
        replace: whether ``to`` may exist.

    Raises:
        UserMistake: ``to`` exists, or cannot be written.
    """
    if not is_url(str(to)):
        yield Path(to)
        return
    store, path = _open(str(to))
    if path is None:
        yield Path(store)
        return
    with _explained(str(to)):
        if not replace and store.exists(path) and (not store.isdir(path) or store.ls(path)):
            raise UserMistake(f"{shown(to)}: exists already; name another place")
    with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
        made = Path(folder) / (path.rpartition("/")[2] or "export")
        yield made
        with _explained(str(to)):
            _copy(store, made, path)


def shown(to: Place) -> str:
    """Return ``to`` for people, without a password."""
    password = urlsplit(str(to)).password if is_url(str(to)) else None
    return str(to).replace(f":{password}@", ":***@") if password else str(to)


def _open(url: str) -> tuple[Any, str | None]:
    """The store and the place in it; of the local file system, the path and None."""
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    with _explained(url):
        store, path = url_to_fs(url)
        return (path, None) if isinstance(store, LocalFileSystem) else (store, str(path).rstrip("/"))


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except UserMistake:
        raise
    except Exception as error:  # every store has errors of its own
        raise UserMistake(f"{shown(url)}: cannot be written ({one_line(error)})") from None


def _copy(store: Any, made: Path, path: str) -> None:
    files = [made] if made.is_file() else sorted(file for file in made.rglob("*") if file.is_file())
    files.sort(key=lambda file: file.name in LAST)
    done: list[str] = []
    try:
        for file in files:
            to = path if file == made else f"{path}/{file.relative_to(made).as_posix()}"
            store.makedirs(to.rpartition("/")[0], exist_ok=True)
            done.append(to)
            _put(store, file, to, whole=file == made or file.name in LAST)
    except BaseException:
        if made.is_dir():
            _remove(store, done)
        raise


def _put(store: Any, file: Path, to: str, *, whole: bool) -> None:
    """Copy one file; where it must appear ``whole``, under another name first."""
    name = f"{to}.{uuid.uuid4().hex}.part" if whole else to
    try:
        store.put_file(str(file), name)
        store.invalidate_cache()
        found, size = store.info(name)["size"], file.stat().st_size
        if found != size:
            raise OSError(f"{to} has {found} bytes there, not {size}")
        if whole:
            store.mv(name, to)
    except BaseException:
        if whole:
            _remove(store, [name])
        raise


def _remove(store: Any, paths: list[str]) -> None:
    for path in paths:
        with suppress(Exception):  # the first error is the one to tell
            store.rm(path)
