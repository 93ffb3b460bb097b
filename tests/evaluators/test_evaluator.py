"""The evaluator: what comes back for models good and bad, what it costs, and that it is the same every time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from evaluators.errors import TaskError
from evaluators.evaluation import Documents, Evaluation, Failure, FailureKind
from evaluators.evaluator import LmEvalEvaluator
from evaluators.objective import EvaluationSettings, Objective
from evaluators.protocol import Evaluator
from evaluators.splits import make_splits
from evaluators.tasks import TaskSuite

MAKE = Callable[..., tuple[LmEvalEvaluator, Documents]]


@pytest.fixture
def prepared(tasks: Any, settings: Any, tokenizer: Any) -> MAKE:
    """An evaluator of one task of each kind and its search documents."""

    def make(**changes: Any) -> tuple[LmEvalEvaluator, Documents]:
        if not (tasks.folder / "mc.yaml").exists():
            tasks.multiple_choice("mc")
        if not (tasks.folder / "gen.yaml").exists():
            tasks.generation("gen")
        chosen: EvaluationSettings = settings(**changes)
        suite = TaskSuite.load([Objective(task="gen", metric="exact_match"), Objective(task="mc")], chosen)
        return LmEvalEvaluator(suite, tokenizer, settings=chosen, max_length=200), make_splits(suite, chosen).search

    return make


def evaluation(outcome: Any) -> Evaluation:
    assert isinstance(outcome, Evaluation), outcome
    return outcome


def failure(outcome: Any, kind: FailureKind) -> str:
    assert isinstance(outcome, Failure), outcome
    assert outcome.kind is kind
    return outcome.message


def test_keeps_the_contract(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared()
    assert isinstance(evaluator, Evaluator)
    found = evaluation(evaluator.evaluate(model, documents))
    assert list(found.scores) == ["gen/exact_match", "mc/acc"], "in the order of the objectives"
    assert list(found.tie_breaks) == ["mc/acc"], "only choices have margins"
    assert found.documents_digest == documents.digest
    for score in found.scores.values():
        assert score.documents.shape == (8,) and score.documents.dtype == np.float64
        assert score.value == pytest.approx(score.documents.mean())
        assert score.standard_error == pytest.approx(score.documents.std(ddof=1) / math.sqrt(8))


def test_the_same_model_gives_the_same_bits(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared()
    again, _ = prepared()
    first, second, third = (evaluation(e.evaluate(model, documents)) for e in (evaluator, evaluator, again))
    assert first.tie_breaks == second.tie_breaks == third.tie_breaks
    for name, score in first.scores.items():
        np.testing.assert_array_equal(score.documents, third.scores[name].documents)


def test_other_models_in_between_leave_no_trace(prepared: MAKE, model: Any, make_model: Any) -> None:
    evaluator, documents = prepared()
    first = evaluation(evaluator.evaluate(model, documents))
    other = evaluation(evaluator.evaluate(make_model("gpt_neox", seed=4), documents))
    assert other.tie_breaks != first.tie_breaks
    assert evaluation(evaluator.evaluate(model, documents)).tie_breaks == first.tie_breaks


def test_a_document_scores_the_same_in_any_company(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared(num_fewshot=2)
    whole = evaluation(evaluator.evaluate(model, documents)).scores["mc/acc"].documents
    ids = documents.ids["mc"]
    alone = [evaluation(evaluator.evaluate(model, Documents({"mc": (number,)}))) for number in ids]
    np.testing.assert_array_equal([found.scores["mc/acc"].documents[0] for found in alone], whole)
    assert all(found.scores["mc/acc"].standard_error is None for found in alone), "one document has no spread"


def test_a_document_named_twice_counts_twice(prepared: MAKE, model: Any) -> None:
    evaluator, _ = prepared()
    once, twice = (evaluation(evaluator.evaluate(model, Documents({"mc": ids}))) for ids in ((5, 3), (5, 3, 5)))
    np.testing.assert_array_equal(twice.scores["mc/acc"].documents, once.scores["mc/acc"].documents[[0, 1, 0]])
    again, _ = prepared()
    assert evaluation(again.evaluate(model, Documents({"mc": (5, 3, 5)}))).tie_breaks == twice.tie_breaks


@pytest.mark.parametrize("tokens", [1, 60, 100_000])
def test_batches_change_no_score(tokens: int, prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared(tokens_per_batch=tokens)
    usual, _ = prepared()
    mine, theirs = (evaluation(e.evaluate(model, documents)) for e in (evaluator, usual))
    assert mine.tie_breaks["mc/acc"] == pytest.approx(theirs.tie_breaks["mc/acc"], abs=1e-4)
    for name, score in mine.scores.items():
        np.testing.assert_array_equal(score.documents, theirs.scores[name].documents)


def test_the_tie_break_is_the_mean_margin(tasks: Any, prepared: MAKE, model: Any, tokenizer: Any) -> None:
    tasks.multiple_choice("mc", doc_to_choice=["yes", "no"], doc_to_target=0, doc_to_text="{{question}}")
    evaluator, documents = prepared()
    documents = Documents({"mc": documents.ids["mc"]})
    margins = []
    for number in documents.ids["mc"]:
        text = evaluator._suite.loaded["mc"].documents[number]["question"]
        lls = []
        for choice in (" yes", " no"):
            ids = tokenizer(text + choice, return_tensors="pt").input_ids
            context = len(tokenizer(text).input_ids)
            with torch.no_grad():
                logits = model(ids).logits[0].log_softmax(-1)
            lls.append(sum(float(logits[i - 1, ids[0, i]]) for i in range(context, ids.shape[1])))
        margins.append(lls[0] - lls[1])
    found = evaluation(evaluator.evaluate(model, documents))
    assert found.tie_breaks["mc/acc"] == pytest.approx(np.mean(margins), abs=1e-4)


def test_costs_are_filled(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared()
    cost = evaluation(evaluator.evaluate(model, documents)).cost
    assert 0 < cost.forward_seconds < cost.seconds
    assert 0 < cost.forward_cpu_seconds < cost.cpu_seconds
    assert cost.documents == 16
    assert cost.tokens > 16 * 5


def test_weights_that_are_nan_are_a_failure(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared()
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    for part in ("mc", "gen"):
        outcome = evaluator.evaluate(broken, Documents({part: documents.ids[part]}))
        assert "NaN or infinite" in failure(outcome, FailureKind.NON_FINITE)
        assert outcome.cost.tokens > 0


def test_logits_that_overflow_are_a_failure(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared()
    huge = copy.deepcopy(model)
    with torch.no_grad():
        huge.lm_head.weight.fill_(3e38)
    failure(evaluator.evaluate(huge, documents), FailureKind.NON_FINITE)


def test_a_metric_that_raises_is_a_failure_with_the_document(tasks: Any, prepared: MAKE, model: Any) -> None:
    helper = "def process(doc, results):\n    return {'acc': 1 / (doc['gold'] - 2)}\n"
    (tasks.folder / "helper.py").write_text(helper)
    path = tasks.multiple_choice("mc")
    path.write_text(path.read_text() + "process_results: !function helper.process\n")
    evaluator, documents = prepared(trusted_paths=(str(tasks.folder),))
    culprit = next(n for n in documents.ids["mc"] if evaluator._suite.loaded["mc"].documents[n]["gold"] == 2)
    message = failure(evaluator.evaluate(model, documents), FailureKind.METRIC_ERROR)
    assert message == f"task mc, document {culprit}: ZeroDivisionError: division by zero"


def test_a_metric_left_out_is_a_failure(tasks: Any, prepared: MAKE, model: Any) -> None:
    (tasks.folder / "helper.py").write_text("def process(doc, results):\n    return {'other': 1.0}\n")
    path = tasks.multiple_choice("mc")
    path.write_text(path.read_text() + "process_results: !function helper.process\n")
    evaluator, documents = prepared(trusted_paths=(str(tasks.folder),))
    assert "no value for metric acc, only for other" in failure(
        evaluator.evaluate(model, documents), FailureKind.METRIC_ERROR
    )


def test_a_filter_that_raises_is_a_failure(tasks: Any, prepared: MAKE, model: Any) -> None:
    filters = [{"name": "odd", "filter": [{"function": "take_first_k", "k": 3}, {"function": "take_first"}]}]
    tasks.generation("gen", filter_list=filters)
    evaluator, documents = prepared()
    assert "task gen, filter odd: AssertionError" in failure(
        evaluator.evaluate(model, documents), FailureKind.METRIC_ERROR
    )


def test_a_metric_that_is_nan_is_a_failure(tasks: Any, prepared: MAKE, model: Any) -> None:
    (tasks.folder / "helper.py").write_text("def process(doc, results):\n    return {'acc': float('nan')}\n")
    path = tasks.multiple_choice("mc")
    path.write_text(path.read_text() + "process_results: !function helper.process\n")
    evaluator, documents = prepared(trusted_paths=(str(tasks.folder),))
    assert "score of mc/acc is not finite" in failure(evaluator.evaluate(model, documents), FailureKind.NON_FINITE)


class Forgetful(torch.nn.Module):
    """A model whose forward pass runs out of memory above a number of rows."""

    def __init__(self, model: Any, rows: int) -> None:
        super().__init__()
        self.inner, self.rows, self.refused = model, rows, 0

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **kw: Any) -> Any:
        if len(input_ids) > self.rows:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kw)


def test_batches_that_do_not_fit_are_halved(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared()
    expected = evaluation(evaluator.evaluate(model, documents))
    small = Forgetful(model, rows=3)
    found = evaluation(evaluator.evaluate(small, documents))
    refused = small.refused
    assert refused > 0
    evaluation(evaluator.evaluate(small, documents))
    assert small.refused == refused, "the budget is lowered for good"
    assert found.tie_breaks["mc/acc"] == pytest.approx(expected.tie_breaks["mc/acc"], abs=1e-4)
    np.testing.assert_array_equal(
        found.scores["gen/exact_match"].documents, expected.scores["gen/exact_match"].documents
    )


def test_a_row_that_does_not_fit_is_a_failure(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared()
    failure(evaluator.evaluate(Forgetful(model, rows=0), documents), FailureKind.OUT_OF_MEMORY)


def test_whatever_else_a_model_raises_is_a_failure(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared()
    broken = copy.deepcopy(model)
    broken.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(3, 3))
    assert "RuntimeError" in failure(evaluator.evaluate(broken, documents), FailureKind.EXCEPTION)


def test_a_generation_config_that_cannot_be_followed_is_a_failure(prepared: MAKE, make_model: Any) -> None:
    evaluator, documents = prepared()
    beams = make_model(seed=1)
    beams.generation_config.no_repeat_ngram_size = 2
    message = failure(evaluator.evaluate(beams, documents), FailureKind.EXCEPTION)
    assert "no_repeat_ngram_size" in message


def test_the_deadline_is_kept(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared(timeout_seconds=1e-9)
    message = failure(evaluator.evaluate(model, documents), FailureKind.TIMED_OUT)
    assert "timeout_seconds is 1e-09" in message


def test_documents_it_does_not_have_are_the_callers_mistake(prepared: MAKE, model: Any) -> None:
    evaluator, _ = prepared()
    for ids, match in (
        ({"other": (0,)}, "task 'other' asked for; known: gen, mc"),
        ({"mc": (0, 24)}, "documents 0 to 23, asked for 24"),
        ({"mc": (-1,)}, "asked for -1"),
        ({"mc": ()}, "no documents of task mc"),
    ):
        with pytest.raises(TaskError, match=match):
            evaluator.evaluate(model, Documents(ids))


def test_an_answer_longer_than_the_context_is_the_users_mistake(tasks: Any, prepared: MAKE, model: Any) -> None:
    tasks.generation("gen", generation_kwargs={"until": ["\n"], "max_gen_toks": 300, "do_sample": False})
    evaluator, documents = prepared()
    with pytest.raises(TaskError, match="task gen, document .*max_gen_toks is 300.*200 tokens"):
        evaluator.evaluate(model, documents)


def test_a_tokenizer_without_an_end_is_the_users_mistake(tasks: Any, settings: Any, tokenizer: Any) -> None:
    tasks.multiple_choice("mc")
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    suite = TaskSuite.load([Objective(task="mc")], settings())
    with pytest.raises(TaskError, match="eos_token"):
        LmEvalEvaluator(suite, endless, settings=settings(), max_length=200)


def test_the_tokenizer_and_the_terminal_are_left_alone(
    prepared: MAKE, model: Any, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (tokenizer.padding_side, tokenizer.pad_token, len(tokenizer))
    evaluator, documents = prepared()
    evaluation(evaluator.evaluate(model, documents))
    assert (tokenizer.padding_side, tokenizer.pad_token, len(tokenizer)) == before
    assert capfd.readouterr() == ("", "")


def test_half_precision(prepared: MAKE, model: Any) -> None:
    evaluator, documents = prepared()
    half = copy.deepcopy(model).to(torch.bfloat16)
    found, whole = (evaluation(evaluator.evaluate(m, documents)) for m in (half, model))
    assert found.tie_breaks["mc/acc"] == pytest.approx(whole.tie_breaks["mc/acc"], rel=0.05)


def test_importing_the_package_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    names = "evaluators, evaluators.evaluation, evaluators.objective, evaluators.splits, evaluators.protocol"
    code = f"import sys, {names}; print(sorted({{'torch', 'lm_eval', 'transformers', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
