"""The proof that scores are lm-eval's: every kind of task, on three architectures, beside `lm_eval.simple_evaluate`.

Both sides start from the same folder with a checkpoint and a tokenizer; lm-eval loads it with its own `hf` backend.
All tasks run in one call on each side, in float32 without and with a chat template, and in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.context import context_length
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

FAMILIES = ("llama", "gpt2", "gemma2")  # rotary, learned and windowed positions; RMS and layer norms; soft caps
DOCUMENTS = 10
# in bfloat16 logits have 8 bits, and batches of other shapes round them differently
BFLOAT16_NATS = 0.1  # per scored token
BFLOAT16_ANSWERS = (
    0.7  # share of equal answers: rounding may turn a choice between two tokens that are nearly as likely
)
HELPER = """
import re


def shortened(dataset):
    return dataset.filter(lambda row: row["gold"] != 3)


def asked(doc):
    return "What about " + doc["question"] + "?"


def words(doc, results):
    said, right = re.findall("[a-z]+", results[0]), re.findall("[a-z]+", doc["choices"][doc["gold"]])
    common = len(set(said) & set(right))
    return {"token_f1": 2 * common / (len(set(said)) + len(set(right)) or 1), "ratio": (len(said), len(right))}


def total_ratio(items):
    return sum(said for said, _ in items) / sum(right for _, right in items)
"""


def mean_of(metric: str, *, higher: bool = True, **options: Any) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": higher, **options}


def aggregated(metric: str, aggregation: str | None = None, *, higher: bool = False) -> dict[str, Any]:
    return {"metric": metric, "aggregation": aggregation or metric, "higher_is_better": higher}


def listed(*names: str, **options: Any) -> dict[str, Any]:
    return {"filter_list": [{"name": name, "filter": options[name]} for name in names]}


FIRST = {"function": "take_first"}
LETTER = {"function": "regex", "regex_pattern": "([a-z])"}
GREEDY = {"until": ["\n"], "max_gen_toks": 10, "do_sample": False}

CHOICES: dict[str, dict[str, Any]] = {
    "words": {},
    "letters": {"doc_to_choice": ["A", "B", "C", "D"], "num_fewshot": 3},
    "mutual": {"metric_list": [mean_of("acc"), mean_of("acc_mutual_info")]},
    "brier": {"metric_list": [aggregated("brier_score")], "num_fewshot": 1},
    "agreement": {
        "metric_list": [aggregated("f1", higher=True), aggregated("mcc", "matthews_corrcoef", higher=True)],
        "doc_to_choice": "{{choices[:2]}}",
        "doc_to_target": "{{gold % 2}}",
    },
    "contexts": {
        "doc_to_text": "gold",
        "doc_to_choice": "{{[question + ' ' + choices[0], question + ' ' + choices[1], choices[2], choices[3]]}}",
        "doc_to_target": "and it ran",
        "metric_list": [mean_of("acc")],
    },
    "several_right": {"doc_to_target": "{{[gold, 0]}}"},
    "own_examples": {"training_split": None, "fewshot_split": "test", "num_fewshot": 2},
    "first_examples": {
        "description": "Answer well.\n\n",
        "fewshot_delimiter": "\n--\n",
        "target_delimiter": " : ",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": 2,
    },
    "too_long": {"doc_to_text": "{{(question + ' ') * 60}}"},
    "python": {"doc_to_text": "!function helper.asked", "process_docs": "!function helper.shortened"},
    "next_word": {
        "output_type": "loglikelihood",
        "doc_to_choice": None,
        "doc_to_target": "{{choices[1]}}",
        "metric_list": [aggregated("perplexity"), mean_of("acc")],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_choice": None,
        "doc_to_target": "{{(question + ' and ') * (1 + 40 * (gold == 1))}}",
        "metric_list": [
            aggregated("word_perplexity", "weighted_perplexity"),
            aggregated("byte_perplexity", "weighted_perplexity"),
            aggregated("bits_per_byte"),
        ],
    },
}
GENERATION: dict[str, dict[str, Any]] = {
    "regexes": {
        "doc_to_target": "{{'a' if gold else 'e'}}",
        **listed("strict", "last", strict=[LETTER, FIRST], last=[{**LETTER, "group_select": -1}, FIRST]),
        "num_fewshot": 2,
    },
    "grouped": {
        "doc_to_target": "{{'a' if gold else 'e'}}",
        **listed("strict", "last", strict=[LETTER, FIRST], last=[{**LETTER, "group_select": -1}, FIRST]),
    },
    "votes": {"repeats": 3, "doc_to_target": "a",
              **listed("maj@3", **{"maj@3": [LETTER, {"function": "majority_vote"}, FIRST]})},
    "forgiving": {
        "metric_list": [mean_of("exact_match", ignore_case=True, ignore_punctuation=True,
                                regexes_to_ignore=["[b-z]+", "\\s", "[^ -~]"])],
        "doc_to_target": "A",
    },
    "any_target": {"doc_to_target": "choices"},
    "translation": {
        "metric_list": [aggregated("bleu", higher=True), aggregated("chrf", higher=True), aggregated("ter")],
    },
    "stops": {"generation_kwargs": {"until": ["e", " s", "on", "~~~~"], "max_gen_toks": 16, "do_sample": False}},
    "prefixed": {"gen_prefix": "The answer is", "doc_to_text": "{{(question + ' ') * (1 + 50 * (gold == 2))}}"},
    "overlap": {
        "process_results": "!function helper.words",
        "metric_list": [
            mean_of("token_f1"),
            {"metric": "ratio", "aggregation": "!function helper.total_ratio", "higher_is_better": True},
        ],
    },
}  # fmt: skip
GROUPS: dict[str, dict[str, Any]] = {
    "sized": {"task": ["words", "letters"], "aggregate_metric_list": [{"metric": "acc"}]},
    "everything": {
        "task": ["sized", "python", {"task": "grouped", "num_fewshot": 1}],
        "aggregate_metric_list": [
            {"metric": "acc", "weight_by_size": False},
            {"metric": "acc_norm"},
            {"metric": "exact_match", "filter_list": ["last"]},
        ],
    },
}
OBJECTIVES = {  # task or group: its metrics
    "words": ["acc", "acc_norm", "acc_bytes"], "letters": ["acc", "acc_norm"], "mutual": ["acc", "acc_mutual_info"],
    "brier": ["brier_score-"], "agreement": ["f1", "mcc"], "contexts": ["acc"], "several_right": ["acc", "acc_norm"],
    "own_examples": ["acc"], "first_examples": ["acc", "acc_norm"], "too_long": ["acc"], "python": ["acc", "acc_norm"],
    "next_word": ["perplexity-", "acc"], "rolling": ["word_perplexity-", "byte_perplexity-", "bits_per_byte-"],
    "regexes": ["exact_match,strict", "exact_match,last"], "votes": ["exact_match"], "forgiving": ["exact_match"],
    "any_target": ["exact_match"], "translation": ["bleu", "chrf", "ter-"], "stops": ["exact_match"],
    "prefixed": ["exact_match"], "overlap": ["token_f1", "ratio"],
    "sized": ["acc"], "everything": ["acc", "acc_norm", "exact_match"],
}  # fmt: skip
IN_EVERYTHING = ("words", "letters", "python", "sized")  # lm-eval refuses to be asked for them once more
WITH_CHAT = ("letters", "first_examples", "forgiving", "prefixed")


@pytest.fixture(scope="module")
def folder(new_folder: Callable[[], Any]) -> Any:
    """All tasks."""
    tasks = new_folder()
    (tasks.folder / "helper.py").write_text(HELPER)
    for number, (name, config) in enumerate(CHOICES.items()):
        write(tasks, tasks.multiple_choice, name, DOCUMENTS + number % 3, 100 * number, config)
    for number, (name, config) in enumerate(GENERATION.items()):
        write(tasks, tasks.generation, name, DOCUMENTS, 3000 + 100 * number, {"generation_kwargs": GREEDY, **config})
    import yaml

    for name, config in GROUPS.items():
        tasks.raw(name, yaml.safe_dump({"group": name, **config}))
    return tasks


def write(tasks: Any, make: Callable[..., Path], name: str, count: int, start: int, config: Mapping[str, Any]) -> None:
    path = make(name, count, start=start, **config)
    path.write_text(path.read_text().replace("'!function", "!function").replace("helper.asked'", "helper.asked")
                    .replace("helper.shortened'", "helper.shortened").replace("helper.words'", "helper.words")
                    .replace("helper.total_ratio'", "helper.total_ratio"))  # fmt: skip


class Builds:
    """The tasks of a setting, built once on each side for all models."""

    def __init__(self, folder: Path, names: tuple[str, ...], options: Mapping[str, Any]) -> None:
        self.folder, self.names, self.options = folder, names, options
        self.objectives = [
            Objective(task=name, metric=metric.rstrip("-"), direction="minimize" if "-" in metric else "maximize")
            for name in names
            for metric in OBJECTIVES[name]
        ]

    @cached_property
    def suite(self) -> TaskSuite:
        folder = (str(self.folder),)
        settings = EvaluationSettings(include_path=folder, trusted_paths=folder, **self.options)
        return TaskSuite.load(self.objectives, settings)

    @cached_property
    def manager(self) -> TaskManager:
        return TaskManager(include_path=str(self.folder), include_defaults=False)

    @cached_property
    def theirs(self) -> list[Any]:
        named = [name for name in self.names if "everything" not in self.names or name not in IN_EVERYTHING]
        loaded = self.manager.load(named)
        return [loaded["groups"].get(name) or loaded["tasks"][name] for name in named]


class Both:
    """What the two say of one checkpoint in one setting; each is asked once."""

    def __init__(self, checkpoint: Path, builds: Builds, dtype: str) -> None:
        self.checkpoint, self.builds, self.dtype = checkpoint, builds, dtype
        self.objectives, self.options = builds.objectives, builds.options

    @cached_property
    def theirs(self) -> Mapping[str, Any]:
        result = lm_eval.evaluator.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(self.checkpoint), "dtype": self.dtype},
            tasks=self.builds.theirs,
            task_manager=self.builds.manager,
            device="cpu",
            batch_size=1,
            bootstrap_iters=2,
            **self.options,
        )
        assert result is not None
        return result

    @property
    def suite(self) -> TaskSuite:
        return self.builds.suite

    @cached_property
    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=getattr(torch, self.dtype)).eval()

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.checkpoint)

    @property
    def max_length(self) -> int:
        return context_length(self.model.config, self.tokenizer)

    @property
    def documents(self) -> Documents:
        return Documents({name: tuple(range(len(task.documents))) for name, task in self.suite.loaded.items()})

    @cached_property
    def ours(self) -> Evaluation:
        settings = self.suite.settings
        evaluator = LmEvalEvaluator(self.suite, self.tokenizer, settings=settings, max_length=self.max_length)
        outcome = evaluator.evaluate(self.model, self.documents)
        assert isinstance(outcome, Evaluation), outcome
        return outcome

    @cached_property
    def responses(self) -> dict[str, list[Any]]:
        """Our answers per task: ((log-likelihood, is greedy), scored tokens), or text."""
        encoder = Encoder(self.tokenizer, max_length=self.max_length)
        book = RequestBook(self.suite, encoder)
        limits = Limits(tokens=2048, wants=8192, max_length=self.max_length)
        plan = make_plan(book, self.documents, limits, branching=can_branch(self.model))
        meter = Meter(device=torch.device("cpu"), timeout_seconds=600.0)
        with torch.inference_mode():
            scored = score(self.model, plan.scoring, requests=plan.scored, meter=meter)
            texts = generate(
                self.model, plan.generation, requests=plan.generated, stopping=Stopping(encoder.tokenizer), meter=meter
            )
        found: dict[str, list[Any]] = {}
        for part in plan.parts:
            requests = [each for request in book.requests(part.task, part.documents) for each in request.encoded]
            if part.generates:
                found[part.task] = texts[part.requests]
            else:
                lengths = [sum(len(window.continuation) for window in windows) for windows in requests]  # type: ignore[union-attr]
                values, greedy = scored.values[part.requests].tolist(), scored.greedy[part.requests].tolist()
                found[part.task] = [((v, g), n) for v, g, n in zip(values, greedy, lengths, strict=True)]
        return found

    def samples(self, task: str, chosen: str | None = None) -> list[Mapping[str, Any]]:
        """lm-eval's record of every document under one filter, in order."""
        samples = self.theirs["samples"][task]
        chosen = chosen or samples[0]["filter"]
        return sorted((s for s in samples if s["filter"] == chosen), key=lambda sample: sample["doc_id"])


Pairs = Callable[[str, str], Both]


@pytest.fixture(scope="module")
def both(folder: Any, make_model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    """What the two say of a family in a setting: ``both("llama", "plain")``."""
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "be short",
            "num_fewshot": 2}  # fmt: skip
    plain = Builds(folder.folder, tuple(OBJECTIVES), {})
    settings = {
        "plain": (plain, "float32"),
        "half": (plain, "bfloat16"),
        "chat": (Builds(folder.folder, WITH_CHAT, chat), "float32"),
    }
    checkpoints: dict[str, Path] = {}
    known: dict[tuple[str, str], Both] = {}

    def make(family: str, setting: str) -> Both:
        if family not in checkpoints:
            checkpoints[family] = tmp_path_factory.mktemp(family)
            make_model(family, seed=5).save_pretrained(checkpoints[family])
            tokenizer.save_pretrained(checkpoints[family])
        if (family, setting) not in known:
            known[family, setting] = Both(checkpoints[family], *settings[setting])
        return known[family, setting]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            lm_eval.evaluator, "add_env_info", lambda storage: None
        )  # a second each, nothing to do with scores
        yield make


def check_responses(pair: Both, task: str) -> None:
    samples = pair.samples(task)
    mine = pair.responses[task]
    if isinstance(mine[0], str):
        repeats = len(samples[0]["resps"][0])
        assert [[text] * repeats for text in mine] == [sample["resps"][0] for sample in samples]
        return
    theirs = [response[0] for sample in samples for response in sample["resps"]]
    if isinstance(theirs[0], tuple):
        assert [greedy for (_, greedy), _ in mine] == [greedy for _, greedy in theirs]
        theirs = [value for value, _ in theirs]
    np.testing.assert_allclose([value for (value, _), _ in mine], theirs, atol=1e-4, rtol=1e-6)


def check_scores(pair: Both, name: str) -> None:
    for objective in (o for o in pair.objectives if o.task == name):
        metric, _, chosen = objective.metric.partition(",")
        results = pair.theirs["results"][name]
        chosen = chosen or next(key.partition(",")[2] for key in results if key.startswith(f"{metric},"))
        mine = pair.ours.scores[objective.name]
        assert mine.value == pytest.approx(results[f"{metric},{chosen}"], rel=1e-5, abs=1e-9), objective.name
        error = results[f"{metric}_stderr,{chosen}"]
        if mine.standard_error is not None:
            assert mine.standard_error == pytest.approx(error, rel=1e-5, abs=1e-9), objective.name
        if name in pair.theirs["samples"]:
            expected = [sample[metric] for sample in pair.samples(name, chosen)]
            if isinstance(expected[0], int | float) and metric != "perplexity":
                np.testing.assert_array_equal(mine.documents, np.array(expected, dtype=float))


def check(pair: Both, name: str) -> None:
    if name in pair.responses:
        check_responses(pair, name)
    check_scores(pair, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain(family: str, name: str, both: Pairs) -> None:
    check(both(family, "plain"), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_CHAT)
@pytest.mark.parametrize("family", FAMILIES)
def test_chat(family: str, name: str, both: Pairs) -> None:
    check(both(family, "chat"), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in GROUPS])
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family: str, name: str, both: Pairs) -> None:
    """Within the stated tolerance: the weights are the same bits, the shapes of the batches are not."""
    pair = both(family, "half")
    samples = pair.samples(name)
    mine = pair.responses[name]
    if isinstance(mine[0], str):
        same = [text == sample["resps"][0][0] for text, sample in zip(mine, samples, strict=True)]
        assert np.mean(same) >= BFLOAT16_ANSWERS
        return
    theirs = [response[0] for sample in samples for response in sample["resps"]]
    theirs = [value[0] if isinstance(value, tuple) else value for value in theirs]
    errors = [abs(value - other) / tokens for ((value, _), tokens), other in zip(mine, theirs, strict=True)]
    assert max(errors) <= BFLOAT16_NATS


@pytest.mark.slow
def test_the_grid_sees_something(both: Pairs) -> None:
    """Scores between the extremes, documents that are cut, answers that stop early: else equality says little."""
    pair = both("llama", "plain")
    between = [name for name, found in pair.ours.scores.items() if 0 < found.value < 1]
    assert len(between) >= 15
    assert len({text for texts in pair.responses.values() for text in texts if isinstance(text, str)}) > 40
    assert len(pair.suite.loaded) >= 20
    assert pair.max_length == 256
