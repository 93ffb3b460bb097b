"""Progress of what takes long: told as shares, or in words to those who only hear words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]  # parts done and in all: bytes written, candidates, ...


def shares(progress: Callable[[str, float], None], what: str) -> Progress:
    """Turn one who hears of shares of ``what`` into one who hears of parts done and in all."""
    return lambda done, total: progress(what, done / max(total, 1))


def by_tenths(say: Callable[[str], None]) -> Callable[[str, float], None]:
    """Turn one who hears words into one who hears shares: ``what: 10 %``, ``20 %``, ..."""
    last = -1

    def progress(what: str, share: float) -> None:
        nonlocal last
        if int(share * 10) != last:
            last = int(share * 10)
            say(f"{what}: {last * 10} %")

    return progress
