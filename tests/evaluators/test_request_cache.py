"""Tokenised requests on disk: found again, never stale, made again when damaged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.encoding import Encoder, Prompt, Window
from evaluators.evaluation import Documents, Evaluation
from evaluators.evaluator import LmEvalEvaluator
from evaluators.objective import Objective
from evaluators.request_cache import RequestCache, tokenizer_digest
from evaluators.requests import RequestBook
from evaluators.splits import make_splits
from evaluators.tasks import TaskSuite

MADE = [
    (
        (("loglikelihood", " cat"), ("loglikelihood", " a dog")),
        ((Window((1, 2, 3), (4,)),), (Window((1, 2, 3), (5, 6)), Window((6,), (7,)))),
    ),
    ((("generate_until", ""),), (Prompt((1, 2, 3), ("\n", "stop é"), 8),)),
]


class Side:
    """A suite, and books over it that share a folder."""

    def __init__(self, folder: Path, tasks: Any, settings: Any, tokenizer: Any) -> None:
        self.folder, self.tasks, self.settings, self.tokenizer = folder, tasks, settings, tokenizer

    def suite(self, **changes: Any) -> TaskSuite:
        return TaskSuite.load(
            [Objective(task="mc"), Objective(task="gen", metric="exact_match")], self.settings(**changes)
        )

    def encoded(self, *, max_length: int = 200, tokenizer: Any = None, **changes: Any) -> list[Any]:
        suite = self.suite(**changes)
        book = RequestBook(suite, Encoder(tokenizer or self.tokenizer, max_length=max_length), cache=self.folder)
        return [book.requests(task, range(6)) for task in suite.tasks]

    def tokens(self, **changes: Any) -> list[Any]:
        return [[request.encoded for request in part] for part in self.encoded(**changes)]

    @property
    def entries(self) -> list[Path]:
        return sorted(self.folder.glob("*.npz"))


@pytest.fixture
def side(tmp_path: Path, tasks: Any, settings: Any, tokenizer: Any) -> Side:
    tasks.multiple_choice("mc")
    tasks.generation("gen")
    return Side(tmp_path / "requests", tasks, settings, tokenizer)


@pytest.fixture
def unbuildable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Calling it makes every further build of requests fail."""

    def refuse(*_: Any) -> None:
        raise AssertionError("built although it was on disk")

    return lambda: monkeypatch.setattr(RequestBook, "_made", refuse)


@pytest.mark.parametrize("shots", [0, 2])
def test_a_second_book_builds_nothing_and_says_the_same(side: Side, unbuildable: Any, shots: int) -> None:
    first = side.encoded(num_fewshot=shots)
    assert len(side.entries) == 2
    unbuildable()
    again = side.encoded(num_fewshot=shots)
    for one, other in zip(first, again, strict=True):
        assert [request.encoded for request in one] == [request.encoded for request in other]
        for mine, theirs in zip(one, other, strict=True):
            assert [(i.doc, i.request_type) for i in mine.instances] == [
                (i.doc, i.request_type) for i in theirs.instances
            ]
            if mine.instances[0].request_type != "generate_until":
                assert [i.args[-1] for i in mine.instances] == [i.args[-1] for i in theirs.instances]
    assert not list(side.folder.glob("*.part"))


def test_scores_are_the_same_bits_from_disk(side: Side, unbuildable: Any, model: Any) -> None:
    def measured() -> tuple[Evaluation, Documents]:
        suite = side.suite(num_fewshot=2)
        evaluator = LmEvalEvaluator(suite, side.tokenizer, settings=suite.settings, max_length=200, cache=side.folder)
        documents = make_splits(suite, suite.settings).search
        found = evaluator.evaluate(model, documents)
        assert isinstance(found, Evaluation), found
        return found, documents

    first, _ = measured()
    unbuildable()
    second, documents = measured()
    assert first.tie_breaks == second.tie_breaks and second.documents_digest == documents.digest
    for name, score in first.scores.items():
        np.testing.assert_array_equal(score.documents, second.scores[name].documents)


def test_whatever_prompts_follow_from_makes_another_entry(side: Side) -> None:
    side.encoded()
    known = len(side.entries)
    other = copy.deepcopy(side.tokenizer)
    other.chat_template = "{{ messages[0]['content'] }}"
    for changes in ({"num_fewshot": 1}, {"max_length": 100}, {"system_instruction": "be brief"}, {"tokenizer": other}):
        side.encoded(**changes)
        assert len(side.entries) > known, changes
        known = len(side.entries)
    side.tasks.multiple_choice("mc", doc_to_text="Q: {{question}}\nA:")
    side.encoded()
    assert len(side.entries) == known + 1, "the other task has not changed"
    side.encoded(search_documents=3, timeout_seconds=5.0, tokens_per_batch=64)
    assert len(side.entries) == known + 1, "these change no prompt"


@pytest.mark.parametrize("damage", [b"", b"not an archive", None])
def test_a_damaged_entry_is_made_again_and_said(side: Side, damage: bytes | None) -> None:
    first = side.tokens()
    entry = side.entries[0]
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.warns(UserWarning, match=f"{entry.name}: damaged, made again"):
        assert side.tokens() == first
    assert side.tokens() == first


def test_a_folder_that_cannot_be_written_costs_time_only(side: Side) -> None:
    side.folder.parent.mkdir(exist_ok=True)
    side.folder.write_text("a file")
    with pytest.warns(UserWarning, match="cannot be kept"):
        found = side.tokens()
    side.folder.unlink()
    assert found == side.tokens()


def test_windows_and_prompts_come_back_as_they_were(side: Side) -> None:
    suite = side.suite()
    cache = RequestCache(side.folder, Encoder(side.tokenizer, max_length=200), suite.settings)
    loaded = suite.parts["mc"]
    assert cache.get(loaded, (3, 1), lambda: MADE) == MADE
    assert cache.get(loaded, (3, 1), lambda: []) == MADE
    assert cache.get(loaded, (1, 3), lambda: []) == []


def test_a_tokenizer_of_python_has_no_digest(tokenizer: Any) -> None:
    class Slow:
        pass

    assert tokenizer_digest(Slow()) is None
    assert tokenizer_digest(tokenizer) == tokenizer_digest(copy.deepcopy(tokenizer))


def test_tasks_with_functions_of_the_user_are_not_kept(side: Side, unbuildable: Any) -> None:
    (side.tasks.folder / "own.py").write_text("def text(doc):\n    return 'Q: ' + doc['question']\n")
    path = side.tasks.multiple_choice("mc", doc_to_text="OWN")
    path.write_text(path.read_text().replace("OWN", "!function own.text"))
    side.encoded(trusted_paths=(str(side.tasks.folder),))
    assert len(side.entries) == 1, "only the other task's"
