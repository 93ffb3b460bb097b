"""Reading JSON and YAML that somebody else wrote: what is too deep, too large or repeats itself too often is refused.

Every error is a `ValueError` (or the `OSError` of the file); the text is one line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from evaluators.errors import one_line
from evomerge.errors import BadSearch

MOST_YAML_NODES = 100_000  # with every alias written out
TOO_DEEP = "nested too deeply"
BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # what a record changed by hand raises


@contextmanager
def a_row() -> Iterator[None]:
    """Around what reads a row of a record (or as a decorator): a row that evomerge did not write is a user's mistake.

    Raises:
        BadSearch: the row cannot be read.
    """
    try:
        yield
    except BROKEN as error:
        text = _first_fault(error) if isinstance(error, ValidationError) else (str(error).splitlines() or [""])[0]
        raise BadSearch(
            f"a row of the record is damaged ({type(error).__name__}: {text}); was it changed by hand?"
        ) from None


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"


def read_json(file: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        ValueError: it is no JSON or no UTF-8, or is nested too deeply.
        OSError: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML document of plain types.

    Raises:
        ValueError: it is no YAML, is nested too deeply, holds itself, or has more than `MOST_YAML_NODES` nodes when its
            aliases are written out (a few lines can stand for billions).
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        nodes = _nodes(root, {}) if root is not None else 0
        if nodes > MOST_YAML_NODES:
            raise ValueError(f"its aliases stand for {nodes:.0e} values; {MOST_YAML_NODES:,} are read")
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {one_line(error)}") from None


def _nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many nodes ``node`` stands for; ``known``: those that were counted, 0 while they are being."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("it holds itself by an alias")
        return known[id(node)]
    known[id(node)] = 0
    count = 1
    if isinstance(node, yaml.SequenceNode):
        count += sum(_nodes(child, known) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        count += sum(_nodes(key, known) + _nodes(value, known) for key, value in node.value)
    known[id(node)] = count
    return count
