"""Files and folders that are written whole or not at all, and by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.errors import NotEnoughRoom, UserMistake


@contextmanager
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that takes its place at the end, or vanishes on an error.

    The folder is made if it is not there; a reader sees the old file or the new one, never half of it.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold the file ``lock``, made if it is not there; the system frees it when a process dies."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_new(path: Path, text: str) -> None:
    """Write the file ``path``, which must not be there.

    Raises:
        UserMistake: it is there, or cannot be written.
    """
    if path.exists():
        raise UserMistake(f"{path}: exists already; name another place")
    try:
        with replacing(path, mode=0o644) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserMistake(f"{path}: cannot be written: {error.strerror}") from None


@contextmanager
def writing_folder(to: Path) -> Iterator[Path]:
    """Yield a new folder beside ``to`` that gets its name at the end, synced, or vanishes on any error.

    Raises:
        UserMistake: ``to`` exists and is not an empty folder.
        NotEnoughRoom: the disk is full.
    """
    to = to.absolute()
    check_free(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.parent / f".{to.name}.partial-{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        yield partial
        _publish(partial, to)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NotEnoughRoom(f"{to.parent}: the disk is full; nothing was left behind") from error
        raise


def check_free(to: Path) -> None:
    """Refuse a folder that `writing_folder` could not write.

    Raises:
        UserMistake: ``to`` exists and is not an empty folder.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserMistake(f"{to}: exists already; give a folder that does not exist or is empty")


def _publish(partial: Path, to: Path) -> None:
    """Sync every file and the folder, then give it its name in one step."""
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    partial.rename(to)
    _sync(to.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
