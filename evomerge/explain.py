"""What is wrong with a value that pydantic refuses, in the words of the file that holds it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from search_spaces.near_names import hint

UNKNOWN_KIND = "union_tag_invalid"  # pydantic's name of the fault
PLUGGED = {"operator", "optimizer", "objectives"}  # sections whose kinds other packages may bring


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the faults of ``error`` on one line, each with its place; for unknown keys and kinds the known ones."""
    faults = error.errors(include_url=False)
    return "; ".join(_in_words(fault, model) for fault in faults if not _follows(fault, faults))


def _in_words(fault: Any, model: type[BaseModel]) -> str:
    place, section = _locate(model, [str(part) for part in fault["loc"]])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {place!r}{hint(place.rpartition('.')[2], section.model_fields) if section else ''}"
    if fault["type"] == UNKNOWN_KIND:
        tag, known = fault["ctx"]["tag"], fault["ctx"]["expected_tags"].replace("'", "").split(", ")
        remedy = "; if a plug-in brings it, install its package" if PLUGGED.intersection(place.split(".")) else ""
        return f"{place}: kind {tag!r} is not known{hint(tag, known)}{remedy}"
    return f"{place or 'file'}: {fault['msg'].removeprefix('Value error, ')}"


def _follows(fault: Any, faults: Iterable[Any]) -> bool:
    """Whether a list is too short only because a fault was found inside it."""
    place = fault["loc"]
    return fault["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in faults
    )


def _locate(model: type[BaseModel], parts: list[str]) -> tuple[str, type[BaseModel] | None]:
    """Return the place in the file that pydantic's ``parts`` mean, and the section that holds it.

    Pydantic names the chosen class of a section with kinds between the section and the key; the file has no such
    level.
    """
    place: list[str] = []
    sections, holder = [model], None
    for part in parts:
        chosen = [section for section in sections if len(sections) > 1 and _kind_of(section) == part]
        if chosen:
            sections = chosen
            continue
        place.append(part)
        if not part.isdigit():
            holder = sections[0] if len(sections) == 1 else None
            field = holder.model_fields.get(part) if holder else None
            sections = _sections_in(field.annotation) if field else []
    return ".".join(place), holder


def _kind_of(section: type[BaseModel]) -> object:
    field = section.model_fields.get("kind")
    return next(iter(get_args(field.annotation)), None) if field else None


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Pydantic classes in an annotation, through unions, tuples and `Annotated`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]
