"""Choosing the winner: validation scores without the winner's curse."""

import numpy as np
import pytest
from fake_search import finish
from fakes import search_file

from evaluators.statistics import shrink


def test_finalists_are_ranked_by_shrunken_validation_scores(tmp_path):
    # opposed objectives: enough of a front
    results = finish(search_file(tmp_path, optimizer={"kind": "nsga2"}, budget={"evaluations": 60, "finalists": 12}))
    ranked = results.finalists
    assert len(ranked) >= 5
    numbers = {split: np.array([results.chooser.number(f.candidate, split) for f in ranked]) for split in SPLITS}
    variance = half_variance_of_differences(results, [f.candidate for f in ranked])
    expected = shrink(numbers["validation"], variance, numbers["search"])
    assert [f.worth for f in ranked] == pytest.approx(expected)
    assert [f.worth for f in ranked] == sorted((f.worth for f in ranked), reverse=True)
    assert results.winner == ranked[0].candidate


SPLITS = ("search", "validation")


def half_variance_of_differences(results, candidates):
    """Both objectives weigh 1/2 and have documents of their own."""
    variance = 0.0
    for name in results.chooser.names:
        rows = [results.record.document_scores(c.evaluations["validation"], name) / 2 for c in candidates]
        halves = [np.var(a - b, ddof=1) / 2 / len(a) for i, a in enumerate(rows) for b in rows[:i]]
        variance += np.mean(halves)
    return variance


def test_few_finalists_are_compared_as_measured(tmp_path):
    results = finish(search_file(tmp_path, budget={"evaluations": 40, "finalists": 3}))
    for finalist in results.finalists:
        assert finalist.worth == results.chooser.number(finalist.candidate, "validation")
