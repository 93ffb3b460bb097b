"""Scores are lm-eval's, metric for metric and document for document; so are log-likelihoods and answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evaluators.encoding import Encoder
from evaluators.evaluation import Documents, Evaluation
from evaluators.evaluator import LmEvalEvaluator
from evaluators.generation import generate
from evaluators.meter import Meter
from evaluators.objective import EvaluationSettings, Objective
from evaluators.plan import Limits, make_plan
from evaluators.requests import RequestBook
from evaluators.scoring import can_branch, score
from evaluators.stopping import Stopping
from evaluators.tasks import TaskSuite

MAX_LENGTH = 200


class Pair:
    """The same model and tasks for lm-eval and for us, on all documents."""

    def __init__(self, model: Any, tokenizer: Any, settings: EvaluationSettings, objectives: list[Objective]) -> None:
        self.model, self.tokenizer, self.settings, self.objectives = model, tokenizer, settings, objectives

    def theirs(self, *, batch_size: int = 1, **options: Any) -> Mapping[str, Any]:
        """What `lm_eval.simple_evaluate` says."""
        peer = HFLM(
            pretrained=self.model,
            tokenizer=copy.deepcopy(self.tokenizer),
            batch_size=batch_size,
            max_length=MAX_LENGTH,
        )
        options = {
            "bootstrap_iters": 2,
            "num_fewshot": self.settings.num_fewshot,
            "apply_chat_template": self.settings.apply_chat_template,
            "fewshot_as_multiturn": self.settings.fewshot_as_multiturn,
            "system_instruction": self.settings.system_instruction,
            "fewshot_random_seed": self.settings.fewshot_seed,
            **options,
        }
        result = simple_evaluate(
            model=peer,
            tasks=list(dict.fromkeys(objective.task for objective in self.objectives)),
            task_manager=TaskManager(include_path=list(self.settings.include_path), include_defaults=False),
            log_samples=True,
            **options,
        )
        assert result is not None
        return result

    def suite(self) -> TaskSuite:
        return TaskSuite.load(self.objectives, self.settings)

    def ours(self) -> Evaluation:
        suite = self.suite()
        evaluator = LmEvalEvaluator(suite, self.tokenizer, settings=self.settings, max_length=MAX_LENGTH)
        outcome = evaluator.evaluate(self.model, everything(suite))
        assert isinstance(outcome, Evaluation), outcome
        return outcome

    def responses(self) -> dict[str, list[Any]]:
        """Our answers per task in lm-eval's order: (log-likelihood, is greedy) or text."""
        suite = self.suite()
        encoder = Encoder(self.tokenizer, max_length=MAX_LENGTH)
        plan = make_plan(
            RequestBook(suite, encoder),
            everything(suite),
            Limits(tokens=512, wants=4096, max_length=MAX_LENGTH),
            branching=can_branch(self.model),
        )
        meter = Meter(device=torch.device("cpu"), timeout_seconds=600.0)
        with torch.inference_mode():
            scored = score(self.model, plan.scoring, requests=plan.scored, meter=meter)
            texts = generate(
                self.model, plan.generation, requests=plan.generated, stopping=Stopping(encoder.tokenizer), meter=meter
            ).texts
        pairs = list(zip(scored.values.tolist(), scored.greedy.tolist(), strict=True))
        return {part.task: (texts if part.generates else pairs)[part.requests] for part in plan.parts}

    def check(self, **options: Any) -> None:
        """Compare values, standard errors and the score of every document."""
        theirs, ours = self.theirs(**options), self.ours()
        assert list(ours.scores) == [objective.name for objective in self.objectives]
        for objective in self.objectives:
            metric, _, chosen = objective.metric.partition(",")
            results = theirs["results"][objective.task]
            filters = [key.partition(",")[2] for key in results if key.startswith(f"{metric},")]
            assert chosen or len(filters) == 1
            chosen = chosen or filters[0]
            mine = ours.scores[objective.name]
            assert mine.value == pytest.approx(results[f"{metric},{chosen}"], rel=1e-5, abs=1e-9)
            error = results[f"{metric}_stderr,{chosen}"]
            if error != "N/A":  # what they bootstrap or were not asked for
                assert mine.standard_error == pytest.approx(error, rel=1e-5, abs=1e-9)
            samples = [sample for sample in theirs["samples"][objective.task] if sample["filter"] == chosen]
            samples.sort(key=lambda sample: sample["doc_id"])
            expected = [sample[metric] for sample in samples]
            if not isinstance(expected[0], tuple) and metric != "perplexity":
                np.testing.assert_array_equal(mine.documents, np.array(expected, dtype=float))

    def check_responses(self, **options: Any) -> None:
        """Compare log-likelihoods within 1e-4, greedy flags and texts exactly."""
        theirs, ours = self.theirs(**options), self.responses()
        for task, mine in ours.items():
            samples = theirs["samples"][task]
            first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
            first.sort(key=lambda sample: sample["doc_id"])
            expected = [response[0] for sample in first for response in sample["resps"]]
            if isinstance(expected[0], str):
                assert mine == expected
            elif isinstance(expected[0], tuple):
                assert [greedy for _, greedy in mine] == [greedy for _, greedy in expected]
                np.testing.assert_allclose([ll for ll, _ in mine], [ll for ll, _ in expected], atol=1e-4, rtol=0)
            else:
                np.testing.assert_allclose([ll for ll, _ in mine], expected, atol=1e-4, rtol=1e-6)


def everything(suite: TaskSuite) -> Documents:
    return Documents({name: tuple(range(len(task.documents))) for name, task in suite.loaded.items()})


def objectives(task: str, *metrics: str, direction: str = "maximize") -> list[Objective]:
    return [Objective.model_validate({"task": task, "metric": m, "direction": direction}) for m in metrics]


MakePair = Callable[..., Pair]


@pytest.fixture
def pair(model: Any, tokenizer: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> MakePair:
    """Makes a pair: ``pair(objectives("mc", "acc"), num_fewshot=2)``."""
    # takes a second each time and has nothing to do with scores
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)

    def make(asked: list[Objective], *, of: Any = None, with_tokenizer: Any = None, **changes: Any) -> Pair:
        return Pair(of or model, with_tokenizer or tokenizer, settings(**changes), asked)

    return make


def test_multiple_choice_scores(tasks: Any, pair: MakePair) -> None:
    tasks.multiple_choice("mc")
    pair(objectives("mc", "acc", "acc_norm", "acc_bytes")).check()


def test_both_kinds_with_examples_from_a_split(tasks: Any, pair: MakePair) -> None:
    tasks.multiple_choice("mc")
    tasks.generation("gen")
    both = pair(objectives("mc", "acc") + objectives("gen", "exact_match"), num_fewshot=2)
    both.check()
    both.check_responses()


def test_a_task_that_fixes_no_examples_keeps_none(tasks: Any, pair: MakePair) -> None:
    tasks.multiple_choice("mc", num_fewshot=0)
    pair(objectives("mc", "acc"), num_fewshot=3).check_responses()


def test_examples_from_the_evaluated_split_leave_out_the_document(tasks: Any, pair: MakePair) -> None:
    tasks.multiple_choice("mc", training_split=None, fewshot_split="test", num_fewshot=2)
    pair(objectives("mc", "acc")).check_responses()


def test_chat_template_with_system_instruction(tasks: Any, pair: MakePair) -> None:
    tasks.multiple_choice("mc", description="Answer well.")
    tasks.generation("gen", gen_prefix="The answer is")
    options = {"apply_chat_template": True, "system_instruction": "be short", "num_fewshot": 1}
    pair(objectives("mc", "acc") + objectives("gen", "exact_match"), **options).check_responses()
    pair(objectives("mc", "acc"), fewshot_as_multiturn=False, **options).check_responses()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_families(family: str, tasks: Any, pair: MakePair, make_model: Any) -> None:
    tasks.multiple_choice("mc")
    tasks.generation("gen")
    pair(objectives("mc", "acc") + objectives("gen", "exact_match"), of=make_model(family, seed=5)).check_responses()


def test_larger_batches_of_lm_eval_say_the_same(tasks: Any, pair: MakePair) -> None:
    tasks.multiple_choice("mc")
    tasks.generation("gen")
    pair(objectives("mc", "acc") + objectives("gen", "exact_match")).check_responses(batch_size=8)


def test_several_filters(tasks: Any, pair: MakePair) -> None:
    filters = [
        {"name": "strict", "filter": [{"function": "regex", "regex_pattern": "(a|e)"}, {"function": "take_first"}]},
        {
            "name": "loose",
            "filter": [
                {"function": "regex", "regex_pattern": "([a-z])", "group_select": -1},
                {"function": "take_first"},
            ],
        },
    ]
    tasks.generation("gen", filter_list=filters, doc_to_target="{{'a' if gold else 'e'}}")
    both = pair(objectives("gen", "exact_match,loose", "exact_match,strict"))
    both.check()
    assert 0 < both.ours().scores["gen/exact_match,strict"].value < 1, "the comparison must see hits and misses"


def test_one_named_filter_needs_no_name(tasks: Any, pair: MakePair) -> None:
    filters = [{"name": "lower", "filter": [{"function": "lowercase"}, {"function": "take_first"}]}]
    tasks.generation("gen", filter_list=filters)
    pair(objectives("gen", "exact_match")).check()


def test_exact_match_that_ignores(tasks: Any, pair: MakePair) -> None:
    metric = {
        "metric": "exact_match",
        "aggregation": "mean",
        "higher_is_better": True,
        "ignore_case": True,
        "ignore_punctuation": True,
        "regexes_to_ignore": ["[b-z]+", "\\s", "[^ -~]"],
    }
    tasks.generation("gen", metric_list=[metric], doc_to_target="A")
    both = pair(objectives("gen", "exact_match"))
    both.check()
    assert 0 < both.ours().scores["gen/exact_match"].value < 1, "the comparison must see hits and misses"


def test_several_right_answers(tasks: Any, pair: MakePair) -> None:
    tasks.generation("gen", doc_to_target="choices")
    tasks.multiple_choice("mc", doc_to_target="{{[gold, 0]}}")
    pair(objectives("mc", "acc", "acc_norm") + objectives("gen", "exact_match")).check()


def test_minimised_metric_without_a_shortcut(tasks: Any, pair: MakePair) -> None:
    metrics = [
        {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ]
    tasks.multiple_choice("mc", metric_list=metrics)
    both = pair(objectives("mc", "brier_score", direction="minimize") + objectives("mc", "acc"))
    both.check(bootstrap_iters=0)
    assert np.mean(both.ours().scores["mc/brier_score"].documents) == pytest.approx(
        both.ours().scores["mc/brier_score"].value
    )


def test_metrics_that_need_all_documents(tasks: Any, pair: MakePair) -> None:
    metrics = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    tasks.multiple_choice("mc", metric_list=metrics, doc_to_choice="{{choices[:2]}}", doc_to_target="{{gold % 2}}")
    pair(objectives("mc", "f1")).check(bootstrap_iters=0)


def test_mutual_information(tasks: Any, pair: MakePair) -> None:
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_mutual_info")]
    tasks.multiple_choice("mc", metric_list=metrics)
    pair(objectives("mc", "acc", "acc_mutual_info")).check()


def test_a_context_for_each_choice(tasks: Any, pair: MakePair) -> None:
    tasks.multiple_choice(
        "mc",
        doc_to_text="gold",
        doc_to_choice="{{[question + ' ' + choices[0], question + ' ' + choices[1], choices[2], choices[3]]}}",
        doc_to_target="and it ran",
    )
    both = pair(objectives("mc", "acc"))
    both.check()
    both.check_responses()


def test_loglikelihood_task(tasks: Any, pair: MakePair) -> None:
    metrics = [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ]
    tasks.multiple_choice(
        "ll", output_type="loglikelihood", doc_to_choice=None, doc_to_target="{{choices[1]}}", metric_list=metrics
    )
    both = pair(objectives("ll", "perplexity", direction="minimize") + objectives("ll", "acc"))
    both.check(bootstrap_iters=0)
    both.check_responses()


def test_rolling_log_likelihood(tasks: Any, pair: MakePair) -> None:
    metrics = [
        {"metric": metric, "aggregation": aggregation, "higher_is_better": False}
        for metric, aggregation in (
            ("word_perplexity", "weighted_perplexity"),
            ("byte_perplexity", "weighted_perplexity"),
            ("bits_per_byte", "bits_per_byte"),
        )
    ]
    tasks.multiple_choice(
        "text",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_choice=None,
        doc_to_target="{{(question + ' and ') * (1 + 40 * (gold == 1))}}",
        metric_list=metrics,
    )
    both = pair(objectives("text", "word_perplexity", "byte_perplexity", "bits_per_byte", direction="minimize"))
    both.check(bootstrap_iters=0)
    both.check_responses()


def test_contexts_that_are_empty_or_too_long(tasks: Any, pair: MakePair) -> None:
    tasks.multiple_choice("empty", doc_to_text="")
    tasks.multiple_choice("long", doc_to_text="{{(question + ' ') * 60}}")
    tasks.generation("spoken", doc_to_text="{{(question + ' ') * 60}}")
    asked = objectives("empty", "acc") + objectives("long", "acc") + objectives("spoken", "exact_match")
    pair(asked).check_responses()


def test_stop_strings_over_several_tokens(tasks: Any, pair: MakePair, make_model: Any) -> None:
    options = {"until": ["e", " s", "on", "~~~~"], "max_gen_toks": 24, "do_sample": False}
    tasks.generation("gen", 40, generation_kwargs=options)
    for seed in range(2):
        pair(objectives("gen", "exact_match"), of=make_model(seed=seed)).check_responses()


def test_repetition_penalty_of_the_model_is_followed(tasks: Any, pair: MakePair, make_model: Any) -> None:
    tasks.generation("gen", generation_kwargs={"until": ["\n"], "max_gen_toks": 16, "do_sample": False})
    plain, penalised = make_model(seed=2), make_model(seed=2)
    penalised.generation_config.repetition_penalty = 1.7
    pair(objectives("gen", "exact_match"), of=penalised).check_responses()
    answers = [pair(objectives("gen", "exact_match"), of=m).responses() for m in (plain, penalised)]
    assert answers[0] != answers[1], "the penalty must change an answer"


def test_a_tokenizer_that_adds_its_own_first_token(tasks: Any, pair: MakePair, tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    adding = copy.deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tasks.multiple_choice("mc", doc_to_text="<s>{{question}}")
    tasks.generation("gen")
    asked = objectives("mc", "acc") + objectives("gen", "exact_match")
    pair(asked, with_tokenizer=adding).check_responses()
