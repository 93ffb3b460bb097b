"""Records of how a source was prepared: what `evomerge align` and `evomerge compress` leave beside the weights."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from evomerge.errors import BadSource

ALIGNMENT, COMPRESSION = "alignment.json", "compression.json"
RECORDS = (ALIGNMENT, COMPRESSION)


def preparation_of(folder: Path) -> str | None:
    """Return the SHA-256 of the record in the model folder ``folder``; None where there is none.

    Raises:
        BadSource: it cannot be read.
    """
    file = _record(folder)
    try:
        return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise BadSource(f"{file}: cannot be read ({error})") from None


def file_name(digest: str) -> str:
    """Return the name of a record beside a recipe that refers to it."""
    return f"preparation-{digest[:16]}.json"


def copy_preparation(folder: Path, to: Path) -> None:
    """Copy the record of the model in ``folder``, if it has one, beside the recipe in ``to``."""
    file, digest = _record(folder), preparation_of(folder)
    if file is not None and digest is not None:
        shutil.copyfile(file, to / file_name(digest))


def _record(folder: Path) -> Path | None:
    return next((folder / name for name in RECORDS if (folder / name).is_file()), None)
