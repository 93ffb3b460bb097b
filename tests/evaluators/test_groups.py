"""Groups and tags: lm-eval's aggregates, and what is refused because lm-eval has none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evaluators.errors import TaskError
from evaluators.evaluation import Documents, Evaluation, Score
from evaluators.evaluator import LmEvalEvaluator
from evaluators.groups import GroupMeasure
from evaluators.metrics import Measure
from evaluators.objective import Objective
from evaluators.splits import make_splits
from evaluators.tasks import TaskSuite, default_objectives


def load(settings: Any, task: str, metric: str = "acc", **more: Any) -> TaskSuite:
    return TaskSuite.load([Objective.model_validate({"task": task, "metric": metric, **more})], settings)


def refused(settings: Any, task: str, metric: str = "acc", *, match: str) -> None:
    with pytest.raises(TaskError, match=match) as caught:
        load(settings, task, metric)
    assert "\n" not in str(caught.value)


def group(tasks: Any, name: str, members: Any, *aggregates: Any, **more: Any) -> Path:
    """Write a group; an aggregate is a metric's name or an entry of the list."""
    entries = [{"metric": each} if isinstance(each, str) else each for each in aggregates]
    config = {"group": name, "task": members, **({"aggregate_metric_list": entries} if entries else {}), **more}
    return Path(tasks.raw(name, yaml.safe_dump(config)))


@pytest.fixture
def pair(tasks: Any) -> Any:
    """Two tasks of different size."""
    tasks.multiple_choice("one", 30, tag="pair")
    tasks.multiple_choice("two", 20, start=500, tag="pair")
    return tasks


SCORES = st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=9), min_size=1, max_size=5)


@given(SCORES, st.booleans())
def test_the_mean_of_a_groups_documents_is_its_value(documents: list[list[float]], weighted: bool) -> None:
    parts = tuple(Measure(Objective(task=f"t{i}"), "acc", "none") for i in range(len(documents)))
    scores = {
        part.name: Score(float(np.mean(each)), float(np.std(each, ddof=1)) / math.sqrt(len(each)), np.array(each))
        for part, each in zip(parts, documents, strict=True)
    }
    found = GroupMeasure(Objective(task="g"), parts, weighted).score(scores)
    assert found is not None and found.standard_error is not None
    assert found.documents.shape == (sum(map(len, documents)),)
    assert found.value == pytest.approx(found.documents.mean())
    expected = np.concatenate(documents).mean() if weighted else np.mean([np.mean(each) for each in documents])
    assert found.value == pytest.approx(expected)
    if weighted and len(documents) == 1:
        assert found.standard_error == pytest.approx(scores[parts[0].name].standard_error)


def test_a_standard_error_that_is_not_known_stays_unknown() -> None:
    parts = tuple(Measure(Objective(task=name), "acc", "none") for name in "ab")
    scores = {"a/acc": Score(1.0, 0.1, np.ones(3)), "b/acc": Score(1.0, None, np.ones(3))}
    measure = GroupMeasure(Objective(task="g"), parts, True)
    found = measure.score(scores)
    assert found is not None and found.standard_error is None
    assert measure.score({"a/acc": scores["a/acc"]}) is None, "a part of a group is not the group"


def test_documents_are_those_of_the_tasks(pair: Any, settings: Any, tokenizer: Any, model: Any) -> None:
    group(pair, "both", ["one", "two"], "acc")
    suite = load(settings(), "both")
    assert suite.tasks == ("one", "two")
    splits = make_splits(suite, settings())
    assert {task: len(ids) for task, ids in splits.search.ids.items()} == {"one": 8, "two": 8}, "counts are per task"
    evaluator = LmEvalEvaluator(suite, tokenizer, settings=settings(), max_length=200)
    whole = evaluator.evaluate(model, splits.search)
    assert isinstance(whole, Evaluation)
    assert list(whole.scores) == ["both/acc"] == list(whole.tie_breaks)
    assert whole.scores["both/acc"].documents.shape == (16,)
    part = evaluator.evaluate(model, Documents({"one": (0, 1)}))
    assert isinstance(part, Evaluation) and part.scores == {}, "a part of a group is not the group"


def test_a_group_and_one_of_its_tasks_share_the_task(pair: Any, settings: Any, tokenizer: Any, model: Any) -> None:
    group(pair, "both", ["one", "two"], "acc")
    suite = TaskSuite.load([Objective(task="both"), Objective(task="two", metric="acc_norm")], settings())
    assert suite.tasks == ("one", "two")
    evaluator = LmEvalEvaluator(suite, tokenizer, settings=settings(), max_length=200)
    found = evaluator.evaluate(model, make_splits(suite, settings()).search)
    assert isinstance(found, Evaluation) and list(found.scores) == ["both/acc", "two/acc_norm"]


def test_a_task_in_two_versions_is_refused(pair: Any, settings: Any) -> None:
    group(pair, "both", ["one", {"task": "two", "num_fewshot": 1}], "acc")
    with pytest.raises(TaskError, match="task two is asked for in two versions"):
        TaskSuite.load([Objective(task="both"), Objective(task="two", metric="acc_norm")], settings())


def test_the_digest_knows_how_a_group_adds_up(pair: Any, settings: Any) -> None:
    digests = set()
    for weighted in (True, False):
        group(pair, "both", ["one", "two"], {"metric": "acc", "weight_by_size": weighted})
        digests.add(load(settings(), "both").digest)
    assert len(digests) == 2


def test_what_lm_eval_has_no_score_for_is_refused_with_its_tasks(pair: Any, settings: Any) -> None:
    group(pair, "both", ["one", {"group": "inner", "task": ["two"]}])
    refused(settings(), "both", match="group both has no aggregate_metric_list, .*one by one .one, two")
    refused(settings(), "pair", match="pair is a tag, so lm-eval has no score for it; name its tasks .*one, two")
    group(pair, "empty", "one", "acc")
    refused(settings(), "empty", match="group empty .*has no tasks; `task` must be a list")


def test_metrics_that_a_group_does_not_have(pair: Any, settings: Any) -> None:
    filters = [{"name": name, "filter": [{"function": "take_first"}]} for name in ("strict", "loose")]
    pair.generation("gen", filter_list=filters)
    group(pair, "both", ["one", "two"], "acc")
    group(pair, "odd", ["one", "two"], "exact_match")
    group(pair, "many", ["gen", "one"], "exact_match", "acc")
    refused(settings(), "both", "acc_norm", match="group both has no metric 'acc_norm'; it has: acc,none")
    refused(settings(), "odd", match="group odd aggregates exact_match, which none of its tasks has .*one, two")
    refused(settings(), "many", "exact_match", match="needs a filter: exact_match,loose, exact_match,strict, acc,none")
    suite = load(settings(), "many", "exact_match,loose")
    assert suite.tasks == ("gen",), "tasks without the metric are left out, as in lm-eval"
    with pytest.raises(TaskError, match="higher acc is better; write direction: maximize"):
        load(settings(), "both", direction="minimize")
    group(pair, "median", ["one"], {"metric": "acc", "aggregation": "median"})
    refused(settings(), "median", match="group median .*cannot be loaded.*'mean' is the only pre-defined aggregation")


@pytest.mark.slow
def test_members_that_are_not_there(pair: Any, settings: Any) -> None:
    group(pair, "both", ["one", "nowhere"], "acc")
    refused(settings(), "both", match="task 'nowhere' of both is not in ")


def test_a_data_set_that_is_not_there_names_the_task_in_the_group(pair: Any, settings: Any) -> None:
    group(pair, "both", ["one", "two"], "acc")
    (pair.folder / "two.test.jsonl").unlink()
    refused(settings(), "both", match="task two .*cannot be loaded .dataset_path='json'.*two.test.jsonl")


def test_first_objectives(pair: Any, settings: Any) -> None:
    group(pair, "both", ["one", "two"], "acc_norm", "acc")
    group(pair, "plain", ["both", "pair"])
    assert default_objectives("both", settings()) == [Objective(task="both", metric="acc_norm")]
    assert default_objectives("pair", settings()) == [Objective(task="one"), Objective(task="two")]
    assert [o.task for o in default_objectives("plain", settings())] == ["both", "one", "two"]
    group(pair, "changing", [{"task": "one", "num_fewshot": 1}])
    with pytest.raises(TaskError, match="changes settings of its tasks"):
        default_objectives("changing", settings())


def test_groups_that_hold_themselves(pair: Any, settings: Any) -> None:
    group(pair, "hen", ["egg"])
    group(pair, "egg", ["one", "hen"])
    group(pair, "snake", ["snake", "one"], "acc")
    with pytest.raises(TaskError, match="group hen holds itself: hen > egg > hen"):
        default_objectives("hen", settings())
    refused(settings(), "hen", match="group hen .*cannot be loaded .*RecursionError")
    refused(settings(), "snake", match="group snake .*cannot be loaded .*RecursionError")


# what a group from a stranger may not do


@pytest.mark.parametrize(
    ("member", "match"),
    [
        ({"task": "one", "metric_list": [{"metric": "somebody/metric"}]}, "metric 'somebody/metric'"),
        ({"task": "own", "dataset_path": "pandas"}, "dataset_path: pandas"),
        ({"group": "inner", "task": [{"task": "one", "custom_dataset": "some.function"}]}, "custom_dataset"),
    ],
)
def test_code_in_a_group_needs_trust(member: Any, match: str, pair: Any, settings: Any) -> None:
    group(pair, "both", ["one", member], "acc")
    refused(settings(), "both", match=match)


def test_functions_in_a_group_need_trust(pair: Any, settings: Any) -> None:
    path = group(pair, "both", ["one"], "acc")
    path.write_text(path.read_text() + "process_docs: !function helper.process\n")
    refused(settings(), "both", match="both.yaml uses `!function`")


def test_templates_of_a_group_are_sandboxed(pair: Any, settings: Any, tmp_path: Path) -> None:
    file = tmp_path / "broken-out"
    attack = "{{ cycler.__init__.__globals__.os.popen('touch FILE').read() }}".replace("FILE", str(file))
    group(pair, "both", [{"task": "one", "doc_to_text": attack}], "acc")
    refused(settings(), "both", match="SecurityError")
    assert not file.exists()
