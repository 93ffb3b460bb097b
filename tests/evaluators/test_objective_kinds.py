"""Objectives beyond lm-eval metrics: their scores against lm-eval's own requests, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from pydantic import TypeAdapter, ValidationError

from evaluators.answers import Answers, Asked
from evaluators.encoding import Encoder
from evaluators.errors import TaskError
from evaluators.evaluation import Documents, Evaluation
from evaluators.evaluator import LmEvalEvaluator
from evaluators.objective import MinibatchSettings, Objective
from evaluators.objective_kinds import AnyObjective, measured
from evaluators.panel import Panel
from evaluators.plan import Limits, make_plan
from evaluators.requests import RequestBook
from evaluators.scoring import LogLikelihoods
from evaluators.smooth import SmoothEvaluator, stand_ins
from evaluators.splits import make_splits
from evaluators.tasks import TaskSuite
from evaluators.texts import split_text

ADAPTER: TypeAdapter[AnyObjective] = TypeAdapter(AnyObjective)
NOTHING = LogLikelihoods(np.array([]), np.array([], dtype=bool))


def objectives(*values: dict[str, Any]) -> list[AnyObjective]:
    return [ADAPTER.validate_python(value) for value in values]


@pytest.fixture
def evaluate(tasks: Any, settings: Any, tokenizer: Any, model: Any) -> Callable[..., Evaluation]:
    """Measures the model on the first eight documents of every task."""

    def run(*values: dict[str, Any]) -> Evaluation:
        suite = TaskSuite.load(objectives(*values), settings())
        evaluator = LmEvalEvaluator(suite, tokenizer, settings=suite.settings, max_length=200)
        ids = {name: tuple(range(min(8, len(task.documents)))) for name, task in suite.loaded.items()}
        outcome = evaluator.evaluate(model, Documents(ids))
        assert isinstance(outcome, Evaluation), outcome
        return outcome

    return run


@pytest.fixture
def theirs(model: Any, tokenizer: Any) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=200)


def ask(lm: HFLM, kind: str, *arguments: tuple[str, ...]) -> list[Any]:
    instances = [Instance(request_type=kind, doc={}, arguments=a, idx=0) for a in arguments]
    with torch.inference_mode():
        found: list[Any] = getattr(lm, kind)(instances, disable_tqdm=True)
    return found


def documents_of(tasks: Any, name: str) -> list[dict[str, Any]]:
    import json

    lines = (tasks.folder / f"{name}.test.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:8]]


@pytest.mark.parametrize("task", ["mc", "gen"])
@pytest.mark.parametrize("per", ["answer", "token", "byte"])
def test_likelihood_is_that_of_the_reference_answer(
    task: str, per: str, tasks: Any, evaluate: Any, theirs: HFLM, tokenizer: Any
) -> None:
    tasks.multiple_choice("mc")
    tasks.generation("gen")
    found = evaluate({"kind": "likelihood", "task": task, "per": per})
    (score,) = found.scores.values()
    rows = documents_of(tasks, task)
    answers = [f" {row['choices'][row['gold']]}" for row in rows]
    prompts = [f"Question: {row['question']}\nAnswer:" for row in rows]
    pairs = list(zip(prompts, answers, strict=True))
    values = [value for value, _ in ask(theirs, "loglikelihood", *pairs)]
    sizes = {
        "answer": [1] * 8,
        "token": [
            len(tokenizer(p + a).input_ids) - len(tokenizer(p).input_ids) for p, a in zip(prompts, answers, strict=True)
        ],
        "byte": [len(answer.encode()) for answer in answers],
    }[per]
    np.testing.assert_allclose(score.documents, np.array(values) / sizes, atol=1e-4)
    assert score.value == pytest.approx(float(score.documents.mean()))
    assert score.standard_error == pytest.approx(float(score.documents.std(ddof=1)) / math.sqrt(8))


@pytest.mark.parametrize("task", ["mc", "gen"])
def test_a_probability_is_that_of_the_answer_or_its_share_among_the_choices(
    task: str, tasks: Any, evaluate: Any, theirs: HFLM
) -> None:
    tasks.multiple_choice("mc")
    tasks.generation("gen")
    (score,) = evaluate({"kind": "likelihood", "task": task, "scale": "probability"}).scores.values()
    expected = []
    for row in documents_of(tasks, task):
        prompt = f"Question: {row['question']}\nAnswer:"
        each = ask(theirs, "loglikelihood", *[(prompt, f" {choice}") for choice in row["choices"]])
        likelihoods = np.exp([value for value, _ in each])
        expected.append(likelihoods[row["gold"]] / (likelihoods.sum() if task == "mc" else 1.0))
    np.testing.assert_allclose(score.documents, expected, atol=1e-5)
    assert score.value == pytest.approx(float(score.documents.mean()))


@pytest.mark.parametrize("measure", ["probability", "probability_per_token"])
def test_smooth_scores_come_under_the_names_of_what_they_stand_for(
    measure: Any, tasks: Any, settings: Any, evaluate: Any, tokenizer: Any, model: Any
) -> None:
    tasks.multiple_choice("mc")
    tasks.generation("gen")
    metrics = tuple(Objective(task=task, metric=metric) for task, metric in NAMES)
    others = stand_ins(metrics, MinibatchSettings(measure=measure))
    suite = TaskSuite.load(tuple(dict.fromkeys(others.values())), settings())
    evaluator = LmEvalEvaluator(suite, tokenizer, settings=settings(), max_length=200)
    smooth = SmoothEvaluator(evaluator, {name: other.name for name, other in others.items()})
    outcome = smooth.evaluate(model, Documents({"mc": tuple(range(8)), "gen": tuple(range(8))}))
    assert isinstance(outcome, Evaluation)
    assert list(outcome.scores) == [f"{task}/{metric}" for task, metric in NAMES]
    per = "answer" if measure == "probability" else "token"
    for (task, _), score in zip(NAMES, outcome.scores.values(), strict=True):
        value = {"kind": "likelihood", "task": task, "per": per, "scale": "probability"}
        (found,) = evaluate(value).scores.values()
        np.testing.assert_allclose(score.documents, found.documents, atol=1e-6)
        assert ((score.documents > 0.0) & (score.documents < 1.0)).all()


NAMES = (("mc", "acc"), ("mc", "acc_norm"), ("gen", "exact_match"))


def test_nothing_smooth_stands_for_what_is_minimised() -> None:
    with pytest.raises(TaskError, match=r"less of objective a/acc is better.*use measure: metric"):
        stand_ins([Objective(task="a", direction="minimize")], MinibatchSettings())


def test_an_objective_without_a_scale_is_written_down_as_before() -> None:
    (plain,) = objectives({"kind": "likelihood", "task": "a"})
    (scaled,) = objectives({"kind": "likelihood", "task": "a", "scale": "probability"})
    assert "scale" not in plain.model_dump(mode="json")
    assert scaled.model_dump(mode="json")["scale"] == "probability"
    assert (plain.name, scaled.name) == ("a/likelihood", "a/probability")


def test_a_likelihood_alone_generates_nothing(tasks: Any, settings: Any, tokenizer: Any) -> None:
    tasks.generation("gen")
    suite = TaskSuite.load(objectives({"kind": "likelihood", "task": "gen"}), settings())
    asked = suite.split_into_parts(Documents({"gen": (0, 1)}))
    book = RequestBook(suite, Encoder(tokenizer, max_length=200))
    plan = make_plan(book, asked, Limits(512, 512, 200), branching=False)
    assert (plan.generated, plan.scored) == (0, 2)


def test_perplexity_of_a_file_is_that_of_its_documents_together(
    tmp_path: Any, evaluate: Any, theirs: HFLM, tokenizer: Any
) -> None:
    texts = ["the cat sat on mat", "the dog ran on the red mat\nthe sun", "one two three four yes no"]
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
    for per in ("token", "word", "byte"):
        found = evaluate({"kind": "perplexity", "file": str(tmp_path / "corpus.txt"), "per": per, "window": 40})
        score = found.scores[f"corpus.txt/perplexity per {per}"]
        values = np.array(ask(theirs, "loglikelihood_rolling", *[(text,) for text in texts]))
        sizes = {
            "token": [len(tokenizer(text).input_ids) for text in texts],
            "word": [len(text.split()) for text in texts],
            "byte": [len(text.encode()) for text in texts],
        }[per]
        assert score.value == pytest.approx(math.exp(-values.sum() / sum(sizes)), rel=1e-4)
        np.testing.assert_allclose(score.documents, -values / sizes, atol=1e-4)
        assert score.standard_error is not None and score.standard_error > 0


@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 30))
def test_documents_of_a_text_hold_all_of_its_words_in_order_and_fit(text: str, window: int) -> None:
    documents = split_text(text, window=window)
    assert all(0 < len(document) <= window for document in documents)
    assert "".join("".join(documents).split()) == "".join(text.split())


def test_responses_are_generated_once_and_judged_by_all(tasks: Any, evaluate: Any, tokenizer: Any) -> None:
    tasks.generation("gen")
    alone = evaluate({"task": "gen", "metric": "exact_match"})
    found = evaluate(
        {"kind": "length", "task": "gen"},
        {"kind": "cost", "task": "gen"},
        {"kind": "cost", "task": "gen", "unit": "seconds"},
        {"task": "gen", "metric": "exact_match"},
    )
    assert list(found.scores) == ["gen/length", "gen/tokens per answer", "gen/seconds per answer", "gen/exact_match"]
    assert found.cost.tokens == alone.cost.tokens
    lengths, costs = found.scores["gen/length"].documents, found.scores["gen/tokens per answer"].documents
    assert set(lengths.tolist()) <= set(range(1, 9))
    prompts = [len(tokenizer(f"Question: {row['question']}\nAnswer:").input_ids) for row in documents_of(tasks, "gen")]
    assert (costs - lengths).tolist() == prompts
    assert (found.scores["gen/seconds per answer"].documents > 0).all()


RESPONSES = ("答えは 18 です。", "the answer must surely be 18", "りんごは全部で 17 個あります。", "18")


def panel_scores(suite: TaskSuite, tokenizer: Any, texts: Any) -> Any:
    book = RequestBook(suite, Encoder(tokenizer, max_length=200))
    plan = make_plan(
        book, suite.split_into_parts(Documents({"gen": (0, 1, 2, 3)})), Limits(512, 512, 200), branching=False
    )
    panel = Panel(suite, plan.parts, lambda part: Asked.of(part, book))
    return panel.judge(Answers(NOTHING, texts, np.ones(4, dtype=np.int64), np.ones(4)))[0]


def test_an_answer_counts_only_in_its_language(tasks: Any, settings: Any, tokenizer: Any) -> None:
    pytest.importorskip("py3langid")
    number = [
        {"name": "number", "filter": [{"function": "regex", "regex_pattern": r"(\d+)"}, {"function": "take_first"}]}
    ]
    tasks.generation("gen", doc_to_target="18", filter_list=number)
    asked = [
        {"kind": "language", "task": "gen", "metric": "exact_match", "language": "ja"},
        {"kind": "language", "task": "gen", "language": "ja"},
        {"task": "gen", "metric": "exact_match"},
    ]
    found = panel_scores(TaskSuite.load(objectives(*asked), settings()), tokenizer, RESPONSES)
    assert {name: score.documents.tolist() for name, score in found.items()} == {
        "gen/exact_match in ja": [1.0, 0.0, 0.0, 0.0],
        "gen/in ja": [1.0, 0.0, 1.0, 0.0],
        "gen/exact_match": [1.0, 1.0, 0.0, 1.0],
    }
    alone = panel_scores(TaskSuite.load(objectives(asked[0]), settings()), tokenizer, RESPONSES)
    assert list(alone) == ["gen/exact_match in ja"], "a metric that only another objective needs is no result"


def test_what_needs_the_base_stands_for_what_is_compared(tmp_path: Any) -> None:
    file = str(tmp_path / "a.txt")
    found = measured(
        objectives(
            {"kind": "distance"},
            {"kind": "forgetting", "task": "a", "metric": "acc"},
            {"task": "a"},
            {"kind": "forgetting", "file": file},
        )
    )
    assert [objective.name for objective in found] == ["a/acc", "a.txt/perplexity per token"]


def test_documents_of_a_file_are_split_like_those_of_a_task(tmp_path: Any, settings: Any) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"paragraph number {i}" for i in range(30)))
    suite = TaskSuite.load(
        objectives({"kind": "perplexity", "file": str(tmp_path / "a.txt"), "window": 20}), settings()
    )
    splits = make_splits(suite, suite.settings)
    parts = [set(part.ids["a.txt"]) for part in (splits.search, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [8, 4, 8]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([{"kind": "length", "task": "mc"}], "judges generated responses, but task mc is multiple_choice"),
        ([{"kind": "distance"}], "needs no documents"),
        ([{"kind": "perplexity", "file": "/nowhere/a.txt"}], "file /nowhere/a.txt cannot be read"),
        ([{"kind": "likelihood", "task": "own"}], "right choices of task own are not known"),
        ([{"kind": "likelihood", "task": "mc"}] * 2, "objective mc/likelihood is named twice"),
    ],
)
def test_what_does_not_fit_is_refused(values: Any, expected: str, tasks: Any, settings: Any) -> None:
    tasks.multiple_choice("mc")
    tasks.multiple_choice("own", metric_list=[{"metric": "acc_mutual_info", "aggregation": "mean"}])
    with pytest.raises(TaskError, match=expected):
        TaskSuite.load(objectives(*values), settings())


def test_unknown_languages_and_metrics_that_are_no_mean_are_refused(tasks: Any, settings: Any) -> None:
    pytest.importorskip("py3langid")
    tasks.generation("gen")
    with pytest.raises(TaskError, match="language 'xx' cannot be detected; known: "):
        TaskSuite.load(objectives({"kind": "language", "task": "gen", "language": "xx"}), settings())


def test_a_missing_library_is_named_with_its_remedy(tasks: Any, settings: Any, monkeypatch: Any) -> None:
    from evaluators import languages

    tasks.generation("gen")
    languages._identifier.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "py3langid.langid", None)
    with pytest.raises(TaskError, match=r"pip install 'evomerge\[language\]'"):
        TaskSuite.load(objectives({"kind": "language", "task": "gen", "language": "ja"}), settings())
    languages._identifier.cache_clear()


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "forgetting"},
        {"kind": "forgetting", "task": "a", "file": "b"},
        {"kind": "forgetting", "file": "b", "metric": "f1"},
        {"kind": "forgetting", "task": "b", "window": 7},
        {"kind": "language", "task": "a", "language": "Japanese"},
        {"kind": "language", "task": "a", "language": "ja", "direction": "minimize"},
        {"kind": "magic"},
        {"kind": "length", "task": "a", "metric": "acc"},
    ],
)
def test_what_breaks_the_schema_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(value)


@pytest.mark.parametrize(
    "value",
    [
        {"task": "a", "metric": "f1,none", "weight": 2.0},
        {"kind": "likelihood", "task": "a", "per": "byte"},
        {"kind": "perplexity", "file": "b.txt", "window": 7},
        {"kind": "length", "task": "a"},
        {"kind": "language", "task": "a", "language": "ja"},
        {"kind": "cost", "task": "a", "unit": "seconds"},
        {"kind": "distance", "relative_to": "base"},
        {"kind": "forgetting", "task": "a"},
        {"kind": "forgetting", "file": "b.txt", "per": "word"},
    ],
)
def test_what_is_recorded_reads_back_the_same(value: Any) -> None:
    objective = ADAPTER.validate_python(value)
    assert ADAPTER.validate_json(objective.model_dump_json()) == objective
    assert objective.direction == ("maximize" if value.get("kind") in (None, "likelihood", "language") else "minimize")


def test_metrics_are_written_as_ever() -> None:
    objective = ADAPTER.validate_python({"task": "a", "metric": "acc"})
    assert objective == Objective(task="a") == ADAPTER.validate_python({"kind": "metric", "task": "a"})
    assert objective.model_dump() == {"task": "a", "metric": "acc", "direction": "maximize", "weight": 1.0}
