"""Sampled answers: transformers' distribution, and draws that depend on model, document and seed alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from evaluators.encoding import Encoder, Prompt
from evaluators.errors import MeasurementFailed, TaskError
from evaluators.evaluation import Documents, Evaluation
from evaluators.evaluator import LmEvalEvaluator
from evaluators.generation import generate
from evaluators.meter import Meter
from evaluators.objective import Objective
from evaluators.prompts import PromptRow, collate_prompts
from evaluators.requests import RequestBook
from evaluators.sampling import Sampling, draw, request_key, uniforms, warpers_of
from evaluators.stopping import Stopping
from evaluators.tasks import TaskSuite

WAYS = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.6},
    {"temperature": 0.8, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "typical_p": 0.7},
    {"temperature": 1.0, "epsilon_cutoff": 0.02, "eta_cutoff": 0.03},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("own", [{}, {"temperature": 0.5, "top_k": 3, "top_p": 0.8, "repetition_penalty": 1.3}])
def test_logits_are_processed_as_transformers_does(options: dict[str, Any], own: dict[str, Any], model: Any) -> None:
    config = GenerationConfig(**own)
    before, model.generation_config = model.generation_config, config
    try:
        full, _ = model._prepare_generation_config(None, do_sample=True, **options)
        full._eos_token_tensor = None
        theirs = model._get_logits_processor(full, input_ids_seq_length=3)
    finally:
        model.generation_config = before
    ours = warpers_of(Sampling(**options), config, torch.device("cpu"))
    assert [type(step) for step in theirs if "Penalty" not in type(step).__name__] == [type(step) for step in ours]
    logits = torch.randn(4, 60, generator=torch.Generator().manual_seed(0)) * 3
    ids = torch.tensor([[1, 2, 3]] * 4)
    unseen = logits.clone()
    unseen[:, 1:4] = float("-inf")  # what a repetition penalty would change is left out of the comparison
    torch.testing.assert_close(ours(ids, unseen), theirs(ids, unseen), rtol=0, atol=0)


def test_a_generation_config_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(MeasurementFailed, match="top_h=0.4, which is not supported"):
        warpers_of(Sampling(1.0), GenerationConfig(top_h=0.4), torch.device("cpu"))


@given(st.integers(0, 2**128 - 1), st.integers(1, 200), st.integers(1, 200))
def test_numbers_depend_on_the_key_alone(key: int, count: int, more: int) -> None:
    first, longer = uniforms(key, count), uniforms(key, count + more)
    assert torch.equal(first, longer[:count])
    assert ((longer >= 0) & (longer < 1)).all()


def test_keys_differ_in_every_part() -> None:
    parts: tuple[Any, ...] = (0, "task", "digest", 0, 0)
    others = [(1, *parts[1:]), (0, "other", *parts[2:]), (0, "task", "d", 0, 0), (*parts[:3], 1, 0), (*parts[:4], 1)]
    assert len({request_key(*each) for each in [parts, *others]}) == 6


@given(st.integers(2, 40), st.integers(0, 2**32))
def test_tokens_without_probability_are_never_drawn(vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(64, vocabulary, generator=generator)
    scores[:, ::2] = float("-inf")
    numbers = torch.rand(64, generator=generator, dtype=torch.float64)
    numbers[:2] = torch.tensor([0.0, 1 - 2.0**-48], dtype=torch.float64)
    assert (draw(scores, numbers) % 2 == 1).all()


def test_draws_follow_the_distribution() -> None:
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    count = 20_000
    tokens = draw(scores.expand(count, -1), uniforms(7, count))
    expected = torch.softmax(scores.double(), -1).numpy() * count
    assert chisquare(np.bincount(tokens.numpy(), minlength=5), expected).pvalue > 1e-3


class Letters:
    """A tokenizer of eight letters, as far as stopping needs one."""

    eos_token_id = None

    def __len__(self) -> int:
        return 8

    def decode(self, tokens: Any, **_: Any) -> str:
        return "".join("abcdefgh"[token] for token in tokens)

    def batch_decode(self, rows: Any) -> list[str]:
        return [self.decode(row) for row in rows]

    def encode(self, text: str, **_: Any) -> list[int]:
        return ["abcdefgh".index(letter) for letter in text]


@pytest.fixture(scope="module")
def small() -> Any:
    """A model over eight tokens."""
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(0.0, 0.7)
    return model


def sampled(model: Any, prompts: list[Prompt], *, batch: int) -> list[str]:
    """The answers to ``prompts``, so many at once."""
    rows = [PromptRow(prompt, (number,)) for number, prompt in enumerate(prompts)]
    batches = [collate_prompts(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    meter = Meter(device=torch.device("cpu"), timeout_seconds=600.0)
    with torch.inference_mode():
        return generate(model, batches, requests=len(rows), stopping=Stopping(Letters()), meter=meter)


def test_answers_have_the_distribution_of_transformers(small: Any) -> None:
    options = {"temperature": 1.2, "top_p": 0.95, "top_k": 6}
    count = 3000
    prompts = [Prompt((1, 2, 5), (), 2, sampling=Sampling(**options), key=key) for key in range(count)]
    ours = sampled(small, prompts, batch=1000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = torch.tensor([[1, 2, 5]] * count)
        mask = torch.ones_like(ids)
        theirs = small.generate(ids, attention_mask=mask, do_sample=True, max_new_tokens=2, pad_token_id=0, **options)
    numbers = [[8 * token[0] + token[1] for token in tokens] for tokens in (
        [Letters().encode(text) for text in ours], theirs[:, 3:].tolist()
    )]  # fmt: skip
    table = np.array([np.bincount(found, minlength=64) for found in numbers])
    table = table[:, table.sum(0) >= 10]
    assert table.shape[1] > 10, "there must be something to compare"
    assert chi2_contingency(table).pvalue > 1e-3


def test_an_answer_does_not_depend_on_its_batch_or_place(small: Any) -> None:
    ways = [Sampling(1.0), Sampling(0.6, top_k=4), None]
    prompts = [
        Prompt((1,) * (1 + number % 3), ("ab", "h"), 5 + number % 4, sampling=ways[number % 3], key=number)
        for number in range(30)
    ]
    alone = sampled(small, prompts, batch=1)
    assert sampled(small, prompts, batch=30) == alone
    assert sampled(small, prompts[::-1], batch=7)[::-1] == alone
    assert len(set(alone)) > 10


def test_similar_models_mostly_give_the_same_answers(small: Any) -> None:
    prompts = [Prompt((1, number % 8), (), 4, sampling=Sampling(1.0), key=number) for number in range(200)]
    similar = copy.deepcopy(small)
    generator = torch.Generator().manual_seed(0)
    for parameter in similar.parameters():
        parameter.data += 0.003 * torch.randn(parameter.shape, generator=generator)
    first, second = sampled(small, prompts, batch=200), sampled(similar, prompts, batch=200)
    shared = np.mean([a == b for a, b in zip(first, second, strict=True)])
    apart = np.mean([a == b for a, b in zip(first[:-8], second[8:], strict=True)])
    assert apart < 0.5 < 0.8 < shared < 1.0


def test_a_long_answer_needs_more_numbers(small: Any) -> None:
    small.config.max_position_embeddings = 256
    prompt = Prompt((1,), (), 150, sampling=Sampling(1.0), key=5)
    assert len(sampled(small, [prompt], batch=1)[0]) == 150


# tasks that sample

VOTES = [
    {"name": "first", "filter": [{"function": "take_first"}]},
    {"name": "maj@3", "filter": [{"function": "regex", "regex_pattern": "([a-z])"},
                                 {"function": "take_first_k", "k": 3},
                                 {"function": "majority_vote"}, {"function": "take_first"}]},
]  # fmt: skip
HOT = {"until": ["\n"], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}


def evaluation(suite: TaskSuite, tokenizer: Any, model: Any, ids: tuple[int, ...]) -> Evaluation:
    evaluator = LmEvalEvaluator(suite, tokenizer, settings=suite.settings, max_length=200)
    outcome = evaluator.evaluate(model, Documents({"gen": ids}))
    assert isinstance(outcome, Evaluation), outcome
    return outcome


def test_repeats_are_drawn_apart_and_filters_see_all(tasks: Any, settings: Any, tokenizer: Any, model: Any) -> None:
    helper = "def share(doc, results):\n    return {'share': len(set(results[0])) / len(results[0])}\n"
    (tasks.folder / "helper.py").write_text(helper)
    different = [{"metric": "share", "aggregation": "mean", "higher_is_better": True}]
    everything = [{"name": "all", "filter": [{"function": "take_first_k", "k": 4}]}]
    path = tasks.generation("gen", generation_kwargs=HOT, repeats=4, filter_list=everything, metric_list=different)
    path.write_text(path.read_text() + "process_results: !function helper.share\n")
    trusted = settings(trusted_paths=(str(tasks.folder),))
    suite = TaskSuite.load([Objective(task="gen", metric="share")], trusted)
    found = evaluation(suite, tokenizer, model, tuple(range(12)))
    assert found.scores["gen/share"].value > 0.9, "four answers to a document are four draws"
    book = RequestBook(suite, Encoder(tokenizer, max_length=200))
    prompts = [prompt for request in book.requests("gen", range(12)) for prompt in request.encoded]
    assert len({prompt.key for prompt in prompts if isinstance(prompt, Prompt)}) == 48


def test_votes_are_those_of_lm_eval_on_the_same_answers(tasks: Any, settings: Any, tokenizer: Any, model: Any) -> None:
    tasks.generation("gen", generation_kwargs=HOT, repeats=3, filter_list=VOTES, doc_to_target="{{'aeiou'[gold]}}")
    suite = TaskSuite.load(
        [Objective(task="gen", metric=f"exact_match,{name}") for name in ("first", "maj@3")], settings()
    )
    found = evaluation(suite, tokenizer, model, tuple(range(24)))
    task = suite.loaded["gen"].task
    book = RequestBook(suite, Encoder(tokenizer, max_length=200))
    requests = book.requests("gen", range(24))
    prompts = [prompt for request in requests for prompt in request.encoded]
    rows = [PromptRow(prompt, (number,)) for number, prompt in enumerate(prompts) if isinstance(prompt, Prompt)]
    meter = Meter(device=torch.device("cpu"), timeout_seconds=600.0)
    with torch.inference_mode():
        answers = generate(model, [collate_prompts(rows)], requests=72, stopping=Stopping(tokenizer), meter=meter)
    task._instances = [request.instances[0] for request in requests]
    for number, instance in enumerate(task._instances):
        instance.resps = answers[3 * number : 3 * number + 3]
    task.apply_filters()
    for name in ("first", "maj@3"):
        expected = [task.process_results(i.doc, [i.filtered_resps[name]])["exact_match"] for i in task._instances]
        np.testing.assert_array_equal(found.scores[f"gen/exact_match,{name}"].documents, expected)


def test_a_subset_of_documents_gets_the_same_draws(tasks: Any, settings: Any, tokenizer: Any) -> None:
    tasks.generation("gen", generation_kwargs=HOT)
    suite = TaskSuite.load([Objective(task="gen", metric="exact_match")], settings())
    keys: dict[int, set[Any]] = {}
    for ids in ((3, 1), tuple(range(24))):
        book = RequestBook(suite, Encoder(tokenizer, max_length=200))
        for number, request in zip(ids, book.requests("gen", ids), strict=True):
            keys.setdefault(number, set()).add(request.encoded)
    assert all(len(found) == 1 for found in keys.values())


def test_the_seed_decides(tasks: Any, settings: Any, tokenizer: Any) -> None:
    tasks.generation("gen", generation_kwargs=HOT)
    suites = [
        TaskSuite.load([Objective(task="gen", metric="exact_match")], settings(sampling_seed=seed))
        for seed in (None, 0, 1)
    ]
    unset, zero, one = (
        RequestBook(suite, Encoder(tokenizer, max_length=200)).requests("gen", [0])[0].encoded for suite in suites
    )
    assert unset == zero != one
    assert suites[0].digest == suites[1].digest != suites[2].digest


def test_the_seed_is_nothing_to_greedy_tasks(tasks: Any, settings: Any) -> None:
    tasks.generation("gen")
    digests = {
        TaskSuite.load([Objective(task="gen", metric="exact_match")], settings(sampling_seed=seed)).digest
        for seed in (None, 1)
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"do_sample": True}, "do_sample: true. at temperature 0.0"),
        ({"do_sample": True, "temperature": 0}, "at temperature 0"),
        ({"do_sample": True, "temperature": 1.0, "num_beams": 2}, "generation_kwargs num_beams are not supported"),
    ],
)
def test_sampling_that_cannot_be(options: dict[str, Any], match: str, tasks: Any, settings: Any) -> None:
    tasks.generation("gen", generation_kwargs={"until": ["\n"], **options})
    with pytest.raises(TaskError, match=match):
        TaskSuite.load([Objective(task="gen", metric="exact_match")], settings())
