"""Calibration prompts: the search documents of tasks, with their reference answers, in tokens."""

from __future__ import annotations

from typing import Any

import pytest

from evaluators.answered import Answered, PromptSource
from evaluators.errors import TaskError
from evaluators.objective import Objective
from evaluators.tasks import TaskSuite


@pytest.fixture
def source(tasks: Any, settings: Any) -> Any:
    def make(*others: str, **changes: Any) -> PromptSource:
        tasks.generation("gen")
        tasks.multiple_choice("choose", start=2000)
        tasks.write("text", {"test": [{"t": f"the cat {i} sat on a mat " * 8} for i in range(30)]}, doc_to_text="",
                    doc_to_target="{{t}}", output_type="loglikelihood_rolling",
                    metric_list=[{"metric": "word_perplexity"}])  # fmt: skip
        chosen = settings(**changes)
        suite = TaskSuite.load([Objective(task="gen", metric="exact_match")], chosen)
        return PromptSource.of(suite, ("gen", *others), chosen)

    return make


def prompts(source: PromptSource, tokenizer: Any, *tasks: str, count: int = 3, most: int = 200) -> Any:
    return source.prompts(tasks, count, tokenizer, context=200, most_tokens=most)


def texts(answered: Answered, tokenizer: Any) -> tuple[str, str]:
    return tokenizer.decode(answered.tokens[: answered.answer]), tokenizer.decode(answered.tokens[answered.answer :])


def test_prompts_are_search_documents_with_their_right_answers(source: Any, tokenizer: Any) -> None:
    made = source("choose")
    found = prompts(made, tokenizer, "choose", "gen")
    assert set(found) == {"choose", "gen"}
    for name, own in found.items():
        loaded = made.suite.loaded[name]
        numbers = made.splits.search.ids[name][:3]
        assert len(own) == len(numbers) == 3
        for number, answered in zip(numbers, own, strict=True):
            document = loaded.documents[number]
            prompt, answer = texts(answered, tokenizer)
            assert prompt.endswith(f"Question: {document['question']}\nAnswer:")
            assert answer == " " + document["choices"][document["gold"]]


def test_tasks_beside_the_objectives_do_not_change_the_split(source: Any) -> None:
    alone, more = source(), source("choose", "text")
    assert alone.splits.search.ids["gen"] == more.splits.search.ids["gen"]
    for name in ("choose", "text"):
        ids = [set(getattr(more.splits, part).ids[name]) for part in ("search", "validation", "test")]
        assert ids[0] and not (ids[0] & ids[1] or ids[0] & ids[2])


def test_search_documents_that_another_task_tests_on_are_refused(source: Any, tasks: Any) -> None:
    tasks.generation("shifted", start=1010)  # its first documents are the last of gen
    with pytest.raises(TaskError, match="is the same as document"):
        source("shifted", search_documents="0:8", validation_documents="8:12", test_documents="12:20")


def test_long_prompts_lose_their_beginning_and_texts_are_scored_whole(source: Any, tokenizer: Any) -> None:
    made = source("text")
    (short,) = prompts(made, tokenizer, "gen", count=1, most=6)["gen"]
    (whole,) = prompts(made, tokenizer, "gen", count=1)["gen"]
    assert len(short.tokens) == 6 < len(whole.tokens)
    assert whole.tokens[-6:] == short.tokens and len(whole.tokens) - whole.answer == 6 - short.answer
    (window,) = prompts(made, tokenizer, "text", count=1)["text"]
    assert window.answer == 1 and len(window.tokens) > 30


def test_few_shot_examples_are_part_of_the_prompt(source: Any, tokenizer: Any) -> None:
    (answered,) = prompts(source(num_fewshot=2), tokenizer, "gen", count=1)["gen"]
    assert texts(answered, tokenizer)[0].count("Question:") == 3


def test_groups_and_unknown_tasks_are_refused(source: Any, tasks: Any, tokenizer: Any) -> None:
    with pytest.raises(TaskError, match="nowhere"):
        source("nowhere")
    tasks.raw("pair", "group: pair\ntask: [gen, choose]\naggregate_metric_list: [{metric: acc}]\n")
    with pytest.raises(TaskError, match="is a group or a tag; name its tasks"):
        prompts(source("pair"), tokenizer, "pair")
