"""A whole search on a group of tasks and on answers that are sampled: the same numbers every time."""

import shutil

import pytest
import yaml

pytestmark = pytest.mark.slow

GROUP = {
    "group": "skills",
    "task": ["rev_e_mc", {"group": "told", "task": ["rev_j"], "aggregate_metric_list": [{"metric": "exact_match"}]}],
    "aggregate_metric_list": [{"metric": "exact_match"}, {"metric": "acc", "weight_by_size": False}],
}
VOTES = {
    "task": "votes",
    "include": "rev_e.yaml",
    "tag": "mine",
    "repeats": 3,
    "generation_kwargs": {"until": ["<eos>"], "max_gen_toks": 5, "do_sample": True, "temperature": 0.7},
    "filter_list": [{"name": "maj@3", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}],
}
OBJECTIVES = [
    {"task": "skills", "metric": "exact_match"},
    {"task": "skills", "metric": "acc"},
    {"task": "votes", "metric": "exact_match"},
]


def searched(sketch, folder, budget):
    from integration_driver import Driver

    folder.mkdir(exist_ok=True)
    tasks = folder.parent / "tasks"
    if not tasks.exists():
        shutil.copytree(sketch.tasks, tasks)
        (tasks / "skills.yaml").write_text(yaml.safe_dump(GROUP), encoding="utf-8")
        (tasks / "votes.yaml").write_text(yaml.safe_dump(VOTES), encoding="utf-8")
    evaluation = {
        "search_documents": 16,
        "validation_documents": 16,
        "test_documents": 32,
        "include_path": [str(tasks)],
    }
    settings = {"objectives": OBJECTIVES, "evaluation": evaluation, "baselines": {"single_coefficient": 0}}
    driver = Driver(folder)
    driver.write(sketch, **settings, budget={"evaluations": budget, "finalists": 2})
    driver.run("run", "search.yaml")
    return driver.results()


def values(results):
    return [c.values("search", results.chooser.names).tolist() for c in results.candidates]


def test_a_search_on_a_group_and_on_samples_is_the_same_when_repeated_and_when_continued(sketch, tmp_path):
    whole = searched(sketch, tmp_path / "whole", budget=14)
    first = searched(sketch, tmp_path / "parts", budget=9)
    rest = searched(sketch, tmp_path / "parts", budget=14)
    assert values(first) == values(whole)[: len(values(first))]
    assert values(rest) == values(whole)
    assert list(whole.chooser.names) == ["skills/exact_match", "skills/acc", "votes/exact_match"]
    assert set(whole.record.row.plan["documents"]["search"]) == {"rev_j", "rev_e_mc", "votes"}
