"""A whole search whose candidates are judged on minibatches, by the probability of right answers."""

import numpy as np
import pytest

pytestmark = pytest.mark.slow


def test_a_search_by_probabilities_ends_with_results_by_the_metrics(sketch, tmp_path):
    from integration_driver import Driver

    driver = Driver(tmp_path)
    driver.write(
        sketch,
        objectives=[{"task": "rev_j", "metric": "exact_match"}, {"task": "rev_e_mc", "metric": "acc"}],
        evaluation={
            "search_documents": 16,
            "validation_documents": 16,
            "test_documents": 32,
            "include_path": [str(sketch.tasks)],
            "minibatches": {"count": 2, "measure": "probability"},
        },
        budget={"evaluations": 30, "finalists": 2},
        baselines={"single_coefficient": 2},
    )
    driver.run("run", "search.yaml")
    results = driver.results()
    assert results.state == "finished"
    assert results.winner.state == "measured"
    judged = [c for c in results.candidates if c.state == "stopped"]
    assert len(judged) > 10
    for candidate in judged:
        evaluation = candidate.evaluations["search"]
        assert evaluation.cost.documents == 16
        for name in results.chooser.names:
            scores = results.record.document_scores(evaluation, name)
            assert len(scores) == 8
            assert not np.isin(scores, (0.0, 1.0)).any()
