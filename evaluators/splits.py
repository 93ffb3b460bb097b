"""Search, validation and test documents: disjoint, deterministic, decided by content.

Where a setting is a count, a task's distinct documents are ranked by SHA-256 of the split seed and their content;
the first go to the search, the next to validation, the next to test. A task's split depends on nothing but its own
documents and the settings. Where a setting is a range, those documents are taken in the task's order and the counts
are filled from the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from evaluators.errors import TaskError
from evaluators.evaluation import Documents
from evaluators.objective import DocumentChoice, EvaluationSettings

_PARTS = ("search", "validation", "test")


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of documents of every task, each in an order that any prefix samples fairly."""

    search: Documents
    validation: Documents
    test: Documents


class _Contents(Protocol):
    @property
    def document_digests(self) -> tuple[str, ...]: ...


class Suite(Protocol):
    """What is split: the digests of each task's documents."""

    @property
    def loaded(self) -> Mapping[str, _Contents]:
        """The tasks by name."""


def make_splits(suite: Suite, settings: EvaluationSettings) -> Splits:
    """Split the evaluation documents of every task of ``suite``; equal input gives equal splits.

    Raises:
        TaskError: a task has too few distinct documents; ranges overlap or reach beyond a task's documents; the same
            content would be in two different splits.
    """
    chosen: dict[str, DocumentChoice] = {
        "search": settings.search_documents,
        "validation": settings.validation_documents,
        "test": settings.test_documents,
    }
    _refuse_overlapping_ranges(chosen)
    split = {
        name: _split_task(name, task.document_digests, chosen, settings.split_seed)
        for name, task in suite.loaded.items()
    }
    _refuse_shared_content({name: task.document_digests for name, task in suite.loaded.items()}, split)
    search, validation, test = (Documents({name: split[name][part] for name in split}) for part in _PARTS)
    return Splits(search, validation, test)


def _split_task(
    name: str, digests: Sequence[str], chosen: Mapping[str, DocumentChoice], seed: int
) -> dict[str, tuple[int, ...]]:
    first_with: dict[str, int] = {}
    for number, digest in enumerate(digests):
        first_with.setdefault(digest, number)
    parts = {part: _range_of(name, part, choice, digests) for part, choice in chosen.items() if isinstance(choice, str)}
    taken = {digests[number] for numbers in parts.values() for number in numbers}
    free = sorted((digest for digest in first_with if digest not in taken), key=lambda d: _rank(d, seed))
    needed = sum(choice for choice in chosen.values() if isinstance(choice, int))
    if needed > len(free):
        raise TaskError(
            f"task {name} has {len(first_with)} distinct documents ({len(free)} outside the given ranges), but "
            f"{needed} are needed: {', '.join(f'{part}_documents {choice}' for part, choice in chosen.items())}"
        )
    start = 0
    for part, choice in chosen.items():
        if isinstance(choice, int):
            parts[part] = tuple(first_with[digest] for digest in free[start : start + choice])
            start += choice
    return parts


def _rank(digest: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()


def _bounds(choice: str) -> tuple[int, int]:
    first, _, stop = choice.partition(":")
    return int(first), int(stop)


def _range_of(name: str, part: str, choice: str, digests: Sequence[str]) -> tuple[int, ...]:
    first, stop = _bounds(choice)
    if stop > len(digests):
        raise TaskError(f"{part}_documents {choice}: task {name} has only {len(digests)} documents")
    first_with: dict[str, int] = {}
    for number in range(first, stop):
        first_with.setdefault(digests[number], number)
    return tuple(first_with.values())


def _refuse_overlapping_ranges(chosen: Mapping[str, DocumentChoice]) -> None:
    ranges = [(part, choice) for part, choice in chosen.items() if isinstance(choice, str)]
    for number, (part, choice) in enumerate(ranges):
        first, stop = _bounds(choice)
        for other, other_choice in ranges[number + 1 :]:
            other_first, other_stop = _bounds(other_choice)
            if first < other_stop and other_first < stop:
                raise TaskError(
                    f"{part}_documents {choice} and {other}_documents {other_choice} overlap; "
                    "a document may be in one split only"
                )


def _refuse_shared_content(
    digests: Mapping[str, Sequence[str]], split: Mapping[str, Mapping[str, Sequence[int]]]
) -> None:
    seen: dict[str, tuple[str, str, int]] = {}
    for name, parts in split.items():
        for part, numbers in parts.items():
            for number in numbers:
                other, other_part, other_number = seen.setdefault(digests[name][number], (name, part, number))
                if other_part != part:
                    raise TaskError(
                        f"document {number} of task {name} ({part}) is the same as document {other_number} of task "
                        f"{other} ({other_part}); give ranges or other counts that put it on one side"
                    )
