"""What goes wrong around a measurement: memory, documents that do not fit, answers and tokenizers that are odd."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluators.encoding import Encoder
from evaluators.errors import TaskError
from evaluators.evaluation import Documents, Evaluation
from evaluators.evaluator import LmEvalEvaluator
from evaluators.memory import Room, in_halves
from evaluators.objective import Objective
from evaluators.requests import RequestBook
from evaluators.tasks import TaskSuite
from evaluators.truncation import count_truncated


def measured(suite: TaskSuite, tokenizer: Any, model: Any, ids: dict[str, tuple[int, ...]]) -> Evaluation:
    evaluator = LmEvalEvaluator(suite, tokenizer, settings=suite.settings, max_length=200)
    outcome = evaluator.evaluate(model, Documents(ids))
    assert isinstance(outcome, Evaluation), outcome
    return outcome


# memory


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(9, 60))
def test_every_row_runs_once_and_what_does_not_fit_is_not_tried_again(rows: list[int], memory: int) -> None:
    done: list[int] = []
    refused: list[int] = []

    def run(part: Any) -> None:
        if sum(part) > memory:
            refused.append(sum(part))
            raise torch.OutOfMemoryError("no")
        done.extend(part)

    room = Room()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluators.memory.gc.collect", lambda: 0)  # takes most of a second with everything imported
        in_halves(rows, run, room=room, size=sum)
        assert done == rows
        assert refused == sorted(set(refused), reverse=True), "each refusal lowers the limit"
        before = len(refused)
        in_halves(rows, run, room=room, size=sum)
    assert done == rows + rows
    if sum(rows) > memory:
        assert before > 0 and sum(rows) not in refused[before:], "the whole is not tried again"


def test_other_errors_are_not_taken_for_memory() -> None:
    def run(part: Any) -> None:
        raise ValueError("no")

    room = Room()
    with pytest.raises(ValueError, match="no"):
        in_halves([1, 2], run, room=room, size=sum)
    assert room.takes(10**9)


# documents longer than the context


def test_documents_that_are_cut_are_counted(tasks: Any, settings: Any, tokenizer: Any, model: Any) -> None:
    long = "{{(question + ' ') * (1 + 60 * (gold == 1))}}"
    tasks.multiple_choice("mc", doc_to_text=long)
    tasks.generation("gen", doc_to_text=long)
    tasks.multiple_choice("short", start=300)
    suite = TaskSuite.load(
        [Objective(task="mc"), Objective(task="gen", metric="exact_match"), Objective(task="short")], settings()
    )
    ids = {name: tuple(range(12)) for name in suite.tasks}
    found = measured(suite, tokenizer, model, ids)
    assert found.truncated == {
        name: sum(document["gold"] == 1 for document in suite.loaded[name].documents[:12]) for name in ("mc", "gen")
    }
    assert min(found.truncated.values()) > 0


def test_a_document_that_just_fits_is_not_counted(tasks: Any, settings: Any, tokenizer: Any) -> None:
    tasks.multiple_choice("mc", 1)
    suite = TaskSuite.load([Objective(task="mc")], settings())
    requests = RequestBook(suite, Encoder(tokenizer, max_length=200)).requests("mc", [0])
    longest = max(len(w.context) + len(w.continuation) for each in requests[0].encoded for w in each)  # type: ignore[union-attr]
    assert count_truncated(requests, max_length=longest - 1) == 0, "the last token is no input"
    assert count_truncated(requests, max_length=longest - 2) == 1


# odd answers


def test_an_answer_that_is_empty_is_an_answer(tasks: Any, settings: Any, tokenizer: Any, model: Any) -> None:
    """A model that ends at once says the empty text; filters and metrics take it."""
    filters = [
        {"name": "plain", "filter": [{"function": "take_first"}]},
        {"name": "letter", "filter": [{"function": "regex", "regex_pattern": "([a-z])"}, {"function": "take_first"}]},
    ]
    metrics = [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True},
    ]
    tasks.generation("gen", filter_list=filters, metric_list=metrics)
    silent = copy.deepcopy(model)
    silent.generation_config.eos_token_id = list(range(len(tokenizer)))
    silent.lm_head.weight.data.zero_()
    silent.lm_head.weight.data[tokenizer.eos_token_id] = 1.0
    silent.model.norm.weight.data.abs_()
    objectives = [Objective(task="gen", metric=m) for m in ("exact_match,plain", "exact_match,letter", "bleu,plain")]
    suite = TaskSuite.load(objectives, settings())
    found = measured(suite, tokenizer, silent, {"gen": tuple(range(6))})
    assert [score.value for score in found.scores.values()] == [0.0, 0.0, 0.0]


def test_a_choice_without_tokens_is_the_users_mistake(tasks: Any, settings: Any, tokenizer: Any, model: Any) -> None:
    tasks.multiple_choice("mc", doc_to_choice="{{['yes', '' if gold else 'no']}}", doc_to_target=0, target_delimiter="")
    suite = TaskSuite.load([Objective(task="mc")], settings())
    with pytest.raises(TaskError, match="task mc, document 1: the answer has 0 tokens"):
        measured(suite, tokenizer, model, {"mc": (0, 1)})


def test_a_prompt_without_tokens_is_the_users_mistake(tasks: Any, settings: Any, tokenizer: Any, model: Any) -> None:
    tasks.generation("gen", doc_to_text="")
    suite = TaskSuite.load([Objective(task="gen", metric="exact_match")], settings())
    with pytest.raises(TaskError, match="task gen, document 0: the prompt has no tokens"):
        measured(suite, tokenizer, model, {"gen": (0, 1)})


# odd tokenizers


@pytest.mark.parametrize("unknown", [None, "<s>"])
def test_a_tokenizer_without_padding_gives_the_same_scores(
    unknown: str | None, tasks: Any, settings: Any, tokenizer: Any, model: Any
) -> None:
    tasks.multiple_choice("mc")
    tasks.generation("gen")
    suite = TaskSuite.load([Objective(task="mc"), Objective(task="gen", metric="exact_match")], settings())
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    bare.unk_token = unknown
    ids = {name: tuple(range(12)) for name in suite.tasks}
    found, expected = (measured(suite, each, model, ids) for each in (bare, tokenizer))
    assert bare.pad_token is None, "the user's tokenizer is left alone"
    for name, score in expected.scores.items():
        np.testing.assert_array_equal(found.scores[name].documents, score.documents)


# nothing is rounded on the way


def test_evaluating_in_half_precision_leaves_position_tables_whole(
    tasks: Any, settings: Any, tokenizer: Any, make_model: Any
) -> None:
    tasks.multiple_choice("mc")
    tasks.generation("gen")
    suite = TaskSuite.load([Objective(task="mc"), Objective(task="gen", metric="exact_match")], settings())
    whole = make_model(seed=4)
    half = copy.deepcopy(whole)
    for parameter in half.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    before = {name: buffer.clone() for name, buffer in half.named_buffers()}
    assert before["model.rotary_emb.inv_freq"].dtype is torch.float32
    measured(suite, tokenizer, half, {name: tuple(range(4)) for name in suite.tasks})
    for name, buffer in half.named_buffers():
        assert buffer.dtype is before[name].dtype and torch.equal(buffer, before[name])
