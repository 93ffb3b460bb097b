"""Measuring models whose layers lie on several devices, which are pretended: scores are those of one device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pretend_devices import pretended

from evaluators.evaluation import Documents, Evaluation
from evaluators.evaluator import LmEvalEvaluator
from evaluators.objective import Objective
from evaluators.splits import make_splits
from evaluators.tasks import TaskSuite
from evomerge.merging.assembly import layers_of
from evomerge.merging.spread import follow_the_weights

SAMPLED = {"until": ["\n"], "max_gen_toks": 6, "do_sample": True, "temperature": 0.8, "top_p": 0.9}


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pretended(monkeypatch, free={0: 1 << 30, 1: 1 << 30}):
        yield


@pytest.fixture
def measured(tasks: Any, settings: Any, tokenizer: Any) -> Callable[[Any], Evaluation]:
    """Measures choices and answers after shared examples, greedy and sampled, in batches that shrink and branch."""
    tasks.multiple_choice("mc", num_fewshot=3)
    tasks.generation("gen", num_fewshot=3)
    tasks.generation("drawn", generation_kwargs=SAMPLED)
    chosen = settings(tokens_per_batch=512)
    objectives = [Objective(task="mc"), *(Objective(task=name, metric="exact_match") for name in ("gen", "drawn"))]
    suite = TaskSuite.load(objectives, chosen)
    documents: Documents = make_splits(suite, chosen).search

    def measure(model: Any) -> Evaluation:
        evaluator = LmEvalEvaluator(suite, tokenizer, settings=chosen, max_length=200)
        outcome = evaluator.evaluate(model, documents)
        assert isinstance(outcome, Evaluation), outcome
        return outcome

    return measure


def on(model: Any, *devices: str) -> Any:
    """A copy of ``model`` with equal parts of its layers on ``devices``, and the rest on the first one."""
    twin = copy.deepcopy(model).to(devices[0])
    stack = layers_of(twin)
    for number, layer in enumerate(stack):
        layer.to(devices[number * len(devices) // len(stack)])
    if len(devices) > 1:
        follow_the_weights(twin)
    return twin


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "gpt2", "gemma2"])
def test_scores_are_those_of_one_device(
    family: str, make_model: Callable[..., Any], measured: Callable[[Any], Evaluation]
) -> None:
    model = make_model(family)
    one, two = measured(on(model, "cuda:0")), measured(on(model, "cuda:0", "cuda:1"))
    assert one.scores.keys() == two.scores.keys()
    for name in one.scores:
        assert np.array_equal(one.scores[name].documents, two.scores[name].documents)
    assert one.tie_breaks == two.tie_breaks, "sums of log-likelihoods, to the bit"
    assert one.cost.tokens == two.cost.tokens
