"""Shell-style patterns on names of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase


def matches(tensor: str, patterns: Sequence[str]) -> bool:
    """Whether the whole name of ``tensor`` matches one of the shell-style ``patterns``."""
    return any(fnmatchcase(tensor, pattern) for pattern in patterns)
