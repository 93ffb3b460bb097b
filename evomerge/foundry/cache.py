"""The cache of finished foundries: what is on disk, whether it is whole, who may write.

<cache>/<digest>/                a finished foundry, put there by one rename
<cache>/<digest>/manifest.json   size and SHA-256 of every other file; where the folder stood when written
<cache>/<digest>.work/           finished stages of an unfinished build, for the holder of the lock only
<cache>/<digest>.lock            held (flock) while building; never removed, so that all lock the same file
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

MANIFEST = "manifest.json"
_POLL_SECONDS = 0.2


class CachePaths(NamedTuple):
    """Every path of one cache entry."""

    root: Path
    work: Path
    lock: Path

    @classmethod
    def of(cls, cache: Path, digest: str) -> CachePaths:
        """The paths of the entry `digest` under `cache`."""
        cache = cache.absolute()
        return cls(cache / digest, cache / f"{digest}.work", cache / f"{digest}.lock")


def write_manifest(folder: Path, *, location: Path) -> None:
    """Records every file under `folder`, which will finally stand at `location`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    record = {
        "location": str(location),
        "files": {path.relative_to(folder).as_posix(): _fingerprint(path) for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def fault(root: Path) -> str | None:
    """Why `root` cannot be used, or None if every file of its manifest is there unchanged."""
    try:
        files = json.loads((root / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if _fingerprint(root / name) != expected:
                return f"{name} differs from the manifest"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not a manifest"
    return None


def stands_elsewhere(root: Path) -> bool:
    """Whether the folder was moved since it was written; call it on a folder without fault only."""
    location = json.loads((root / MANIFEST).read_text(encoding="utf-8"))["location"]
    return Path(location).resolve() != root.resolve()


@contextmanager
def locked(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds an exclusive lock on `file`; `waiting` is called now and then while another process holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(_POLL_SECONDS)
        # Closing the file releases the lock, also when the process is killed.
        yield


def _fingerprint(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
