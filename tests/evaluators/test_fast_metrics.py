"""The short cuts equal the task's own `process_results`, or are not taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluators.fast_metrics import choices_of, exact_match_of
from evaluators.objective import Objective
from evaluators.tasks import LoadedTask, TaskSuite

FIXTURES = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
ACCURACIES = ("acc", "acc_norm", "acc_bytes")


def load(evaluation_settings: Any, name: str, metric: str) -> LoadedTask:
    return TaskSuite.load([Objective(task=name, metric=metric)], evaluation_settings).loaded[name]


@FIXTURES
@given(data=st.data(), several=st.booleans(), by_text=st.booleans())
def test_accuracies(data: st.DataObject, several: bool, by_text: bool, tasks: Any, settings: Any) -> None:
    target = "{{[gold, 1]}}" if several else "{{choices[gold]}}" if by_text else "gold"
    choices = "{{choices[: 2 + question|length % 3] + ['\N{LATIN SMALL LETTER E WITH ACUTE}' * 7]}}"
    tasks.multiple_choice("mc", 12, doc_to_target=target, doc_to_choice=choices)
    loaded = load(settings(), "mc", "acc")
    counts = np.array([len(loaded.task.doc_to_choice(document)) for document in loaded.documents])
    assert len(set(counts.tolist())) > 1, "documents must differ in their number of choices"
    lls = np.array(
        data.draw(st.lists(st.integers(-40, 0), min_size=int(counts.sum()), max_size=int(counts.sum()))), dtype=float
    )
    fast = choices_of(loaded.task, loaded.documents, counts)
    assert fast is not None
    first, expected = 0, []
    for document, count in zip(loaded.documents, counts, strict=True):
        answers = [(ll, False) for ll in lls[first : first + count]]
        expected.append(loaded.task.process_results(document, answers))
        first += count
    for metric in ACCURACIES:
        assert fast.accuracy(metric, lls) == [result[metric] for result in expected]


@FIXTURES
@given(
    answers=st.lists(
        st.sampled_from(["cat", "Cat!", "dog on", "1 red 2", "", "red", "a red"]), min_size=12, max_size=12
    ),
    options=st.fixed_dictionaries(
        {},
        optional={
            "ignore_case": st.booleans(),
            "ignore_punctuation": st.booleans(),
            "ignore_numbers": st.booleans(),
            "regexes_to_ignore": st.sampled_from([["^a "], [" ", "[0-9]"]]),
        },
    ),
    target=st.sampled_from(["{{choices[gold]}}", "choices", "CAT!", "{{['red', '3 red 4', 'dog on']}}"]),
)
def test_exact_match(answers: list[str], options: Any, target: str, tasks: Any, settings: Any) -> None:
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, **options}
    tasks.generation("gen", 12, metric_list=[metric], doc_to_target=target)
    loaded = load(settings(), "gen", "exact_match")
    fast = exact_match_of(loaded.task, loaded.documents)
    assert fast is not None
    expected = [
        loaded.task.process_results(document, [answer])["exact_match"]
        for document, answer in zip(loaded.documents, answers, strict=True)
    ]
    assert fast(answers) == expected


def test_exact_match_with_the_number_of_a_choice(tasks: Any, settings: Any) -> None:
    tasks.generation("gen", 12, doc_to_choice="choices", doc_to_target="gold")
    loaded = load(settings(), "gen", "exact_match")
    fast = exact_match_of(loaded.task, loaded.documents)
    assert fast is not None
    answers = [document["choices"][number // 2 % 4] for number, document in enumerate(loaded.documents)]
    expected = [
        loaded.task.process_results(document, [answer])["exact_match"]
        for document, answer in zip(loaded.documents, answers, strict=True)
    ]
    assert fast(answers) == expected
    assert 0 < sum(expected) < 12, "hits and misses"


def test_margins(tasks: Any, settings: Any) -> None:
    tasks.multiple_choice("mc", 2)
    loaded = load(settings(), "mc", "acc")
    assert [document["gold"] for document in loaded.documents] == [0, 1]
    fast = choices_of(loaded.task, loaded.documents, np.array([4, 4]))
    assert fast is not None and fast.has_margins
    assert fast.margin(np.array([-1.0, -3.0, -2.5, -9.0, -4.0, -5.0, -6.0, -7.0])) == pytest.approx((1.5 - 1.0) / 2)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "metric_list": [
                {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_mutual_info")
            ]
        },
        {"doc_to_choice": "{{['' if gold else 'maybe', 'yes', 'no', 'on']}}"},
    ],
)
def test_what_is_not_plain_is_left_to_lm_eval(changes: dict[str, Any], tasks: Any, settings: Any) -> None:
    tasks.multiple_choice("mc", 8, **changes)
    loaded = load(settings(), "mc", "acc")
    assert choices_of(loaded.task, loaded.documents, np.array([4] * 8)) is None


def test_a_right_answer_that_is_no_choice_is_never_right(tasks: Any, settings: Any) -> None:
    tasks.multiple_choice("mc", 4, doc_to_target="{{9 if gold else 0}}")
    loaded = load(settings(), "mc", "acc")
    fast = choices_of(loaded.task, loaded.documents, np.array([4] * 4))
    assert fast is not None
    assert not fast.has_margins
    assert fast.accuracy("acc", np.zeros(16)) == [1.0, 0.0, 0.0, 0.0]
