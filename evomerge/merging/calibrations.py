"""Records of calibration prompts in the cache folder, and beside recipes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from evomerge.atomic import replacing
from evomerge.errors import BadRecipe
from evomerge.merging.prepared import in_the_cache
from evomerge.merging.sources import cache_folder
from search_spaces.calibration import Calibration
from search_spaces.recipe import Recipe


def file_name(digest: str) -> str:
    """Return the name of the record's file: beside a recipe, and in the cache folder."""
    return f"calibration-{digest[:16]}.json"


def named_in(recipe: Recipe) -> tuple[str, ...]:
    """Return the digests of the calibration prompts that the operators of ``recipe`` name, sorted."""
    return tuple(sorted({operator.prompts for operator in recipe.operators if hasattr(operator, "prompts")}))


def keep(calibration: Calibration, folder: Path | None = None) -> None:
    """Write the record into ``folder``, by default where `recall` looks for it.

    Raises:
        NotEnoughRoom: it cannot be written.
    """
    file = (folder or _shelf()) / file_name(calibration.digest)
    if file.is_file() and folder is None and _read(file, calibration.digest) is not None:
        return
    with in_the_cache(file), replacing(file, mode=0o644) as temporary:
        temporary.write_text(calibration.to_json() + "\n", encoding="utf-8")


def recall(digest: str) -> Calibration:
    """Return the record with this digest.

    Raises:
        BadRecipe: it is not here.
    """
    found = _read(_shelf() / file_name(digest), digest)
    if found is None:
        raise BadRecipe(
            f"the recipe needs the calibration prompts {digest[:16]}, which are not here: put {file_name(digest)} "
            "beside the recipe; `evomerge export` writes it there"
        )
    return found


def fetch(recipe: Recipe, folder: Path) -> None:
    """Keep the records that ``recipe`` names and that lie in ``folder``, its own.

    Raises:
        BadRecipe: a file there is not what its name says.
    """
    for digest in named_in(recipe):
        file = folder / file_name(digest)
        if file.is_file():
            found = _read(file, digest)
            if found is None:
                raise BadRecipe(f"{file}: damaged, or not the calibration prompts of this recipe; copy it anew")
            keep(found)


def _shelf() -> Path:
    return cache_folder() / "calibrations"


def _read(file: Path, digest: str) -> Calibration | None:
    try:
        return _parsed(file, file.stat().st_mtime_ns, digest)
    except (OSError, UnicodeDecodeError, ValueError):
        return None


@lru_cache(maxsize=16)
def _parsed(file: Path, _: int, digest: str) -> Calibration:
    found = Calibration.model_validate_json(file.read_text(encoding="utf-8"))
    if found.digest != digest:
        raise ValueError("other prompts")
    return found
