"""Splits: disjoint, deterministic, decided by content."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluators.errors import TaskError
from evaluators.objective import DocumentChoice, EvaluationSettings
from evaluators.splits import Splits, make_splits


@dataclass(frozen=True)
class Contents:
    document_digests: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    loaded: dict[str, Contents]


def suite(**tasks: list[str]) -> Suite:
    return Suite({name: Contents(tuple(contents)) for name, contents in tasks.items()})


def numbered(count: int, prefix: str = "d") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def split(
    given_suite: Suite,
    search: DocumentChoice,
    validation: DocumentChoice,
    test: DocumentChoice,
    *,
    seed: int = 0,
) -> Splits:
    settings = EvaluationSettings(
        search_documents=search, validation_documents=validation, test_documents=test, split_seed=seed
    )
    return make_splits(given_suite, settings)


COUNTS = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))


@given(contents=st.lists(st.integers(0, 60), min_size=1, max_size=80), counts=COUNTS, seed=st.integers(0, 5))
def test_parts_are_disjoint_by_content_and_as_large_as_asked(
    contents: list[int], counts: tuple[int, int, int], seed: int
) -> None:
    digests = [f"content {content}" for content in contents]
    if sum(counts) > len(set(digests)):
        with pytest.raises(TaskError, match=f"has {len(set(digests))} distinct documents .* {sum(counts)} are needed"):
            split(suite(t=digests), *counts, seed=seed)
        return
    splits = split(suite(t=digests), *counts, seed=seed)
    parts = [splits.search.ids["t"], splits.validation.ids["t"], splits.test.ids["t"]]
    assert [len(part) for part in parts] == list(counts)
    chosen = [digests[number] for part in parts for number in part]
    assert len(set(chosen)) == len(chosen)


@given(order=st.permutations(range(20)), seed=st.integers(0, 3))
def test_content_decides_not_its_place(order: list[int], seed: int) -> None:
    contents = numbered(20)
    shuffled = [contents[number] for number in order]
    one, other = (split(suite(t=c), 6, 5, 4, seed=seed) for c in (contents, shuffled))
    assert [contents[i] for i in one.search.ids["t"]] == [shuffled[i] for i in other.search.ids["t"]]
    assert [contents[i] for i in one.test.ids["t"]] == [shuffled[i] for i in other.test.ids["t"]]


def test_a_task_is_split_the_same_in_any_company_and_whatever_the_other_counts() -> None:
    alone = split(suite(a=numbered(30)), 5, 5, 5)
    together = split(suite(b=numbered(40, "x"), a=numbered(30)), 5, 5, 5)
    assert alone.test.ids["a"] == together.test.ids["a"]
    assert split(suite(a=numbered(30)), 9, 1, 5).search.ids["a"][:5] == alone.search.ids["a"]


def test_equal_content_in_two_tasks_falls_on_the_same_side() -> None:
    splits = split(suite(a=numbered(30), b=numbered(30)[::-1]), 8, 8, 8)
    assert [29 - number for number in splits.test.ids["b"]] == list(splits.test.ids["a"])


def test_another_seed_is_another_split() -> None:
    first, second = (split(suite(t=numbered(50)), 10, 10, 10, seed=seed) for seed in (0, 1))
    assert set(first.search.ids["t"]) != set(second.search.ids["t"])


def test_content_on_two_sides_is_refused_with_both_tasks() -> None:
    with pytest.raises(TaskError, match=r"task b \((search|validation|test)\) is the same as document \d+ of task a"):
        split(suite(a=numbered(30), b=[*numbered(15), *numbered(15, "x")]), 10, 10, 10)


def test_ranges_are_taken_in_order_and_counts_from_the_rest() -> None:
    splits = split(suite(t=numbered(30)), "0:5", 5, "20:30")
    assert splits.search.ids["t"] == (0, 1, 2, 3, 4)
    assert splits.test.ids["t"] == tuple(range(20, 30))
    assert set(splits.validation.ids["t"]) <= set(range(5, 20))


def test_a_range_uses_equal_documents_once() -> None:
    splits = split(suite(t=["a", "b", "a", "c", "d", "e"]), "0:4", 1, 1)
    assert splits.search.ids["t"] == (0, 1, 3)


def test_overlapping_ranges_are_named() -> None:
    with pytest.raises(TaskError, match=r"search_documents 0:10 and test_documents 9:20 overlap"):
        split(suite(t=numbered(30)), "0:10", 2, "9:20")


def test_equal_documents_in_two_ranges_are_refused() -> None:
    with pytest.raises(TaskError, match=r"document 3 of task t \(test\) is the same as document 0"):
        split(suite(t=["a", "b", "c", "a", "d"]), "0:2", 1, "3:5")


def test_a_range_beyond_the_documents_is_refused() -> None:
    with pytest.raises(TaskError, match=r"test_documents 20:40: task t has only 30 documents"):
        split(suite(t=numbered(30)), 1, 1, "20:40")


@pytest.mark.parametrize("wrong", [0, -1, "5:5", "7:3", "a:b", "3", "1:2:3", "-1:4"])
def test_settings_refuse_what_chooses_no_documents(wrong: object) -> None:
    if wrong == "3":
        assert EvaluationSettings.model_validate({"search_documents": wrong}).search_documents == 3
        return
    with pytest.raises(ValidationError):
        EvaluationSettings.model_validate({"search_documents": wrong})
