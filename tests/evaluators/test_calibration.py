"""Calibration prompts: the first search documents of every task in turn, as tokens that models see."""

from collections.abc import Callable
from typing import Any

import pytest

from evaluators import calibration
from evaluators.calibration import calibration_prompts
from evaluators.evaluation import Documents
from evaluators.objective import Objective
from evaluators.tasks import TaskSuite


@pytest.fixture
def suite(tasks: Any, settings: Callable[..., Any]) -> TaskSuite:
    tasks.multiple_choice("choose")
    tasks.generation("say")
    objectives = [Objective(task="choose", metric="acc"), Objective(task="say", metric="exact_match")]
    return TaskSuite.load(objectives, settings())


def test_prompts_are_those_of_the_named_documents_in_turn(suite: TaskSuite, tokenizer: Any) -> None:
    documents = Documents({"choose": (3, 5, 1), "say": (4,)})
    texts = [tokenizer.decode(ids) for ids in calibration_prompts(suite, tokenizer, documents, max_length=128)]
    loaded = suite.loaded
    asked = [("choose", 3), ("say", 4), ("choose", 5), ("choose", 1)]
    expected = [loaded[task].task.doc_to_text(loaded[task].documents[number]) for task, number in asked]
    assert len(texts) == 4
    assert all(prompt in text for prompt, text in zip(expected, texts, strict=True))


def test_they_are_few_and_short(suite: TaskSuite, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = Documents({"choose": tuple(range(8)), "say": tuple(range(8))})
    every = calibration_prompts(suite, tokenizer, documents, max_length=128)
    assert len(every) == 16
    monkeypatch.setattr(calibration, "MOST_PROMPTS", 5)
    monkeypatch.setattr(calibration, "MOST_TOKENS", 3)
    assert calibration_prompts(suite, tokenizer, documents, max_length=128) == [each[-3:] for each in every[:5]]
