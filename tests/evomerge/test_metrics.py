"""What Prometheus is told of a search agrees with its record."""

from collections import defaultdict

import numpy as np
import pytest
from fake_search import DieAfter, Stop, finish, started
from fakes import FakeSpec, search_file

from evomerge.archives.pareto import hypervolume
from evomerge.metrics import ABOUT, SearchMetrics
from evomerge.results import Results
from evomerge.runner import Several, Silent


class Meters:
    """Keeps what it is told."""

    def __init__(self):
        self.values = defaultdict(float)

    def count(self, name, amount, about, **tags):
        assert about in ABOUT.values()
        self.values[(name, *tags.values())] += amount

    def gauge(self, name, value, about, **tags):
        assert about in ABOUT.values()
        self.values[(name, *tags.values())] = value


class Late(Silent):
    """Listeners that are known only once the search is there."""

    inner = Silent()

    def evaluated(self, candidate, split):
        self.inner.evaluated(candidate, split)


def run(file, meters, watcher, spec=None):
    late = Late()
    with started(file, spec, watcher=late) as search:
        metrics = SearchMetrics(meters, search.record, file, search._dispatcher)
        late.inner = Several((metrics, watcher))
        try:
            search.run()
        finally:
            metrics.send()
        return Results.of(search.record)


def test_counters_and_gauges_agree_with_the_record_whoever_ran_it(tmp_path):
    file = search_file(tmp_path)
    before, after = Meters(), Meters()
    spec = FakeSpec(fail_above=0.9)
    with pytest.raises(Stop):
        run(file, before, DieAfter(15), spec)
    results = run(file, after, Silent(), spec)

    def total(name, *tags):
        return before.values[(f"evomerge_{name}", "fake", *tags)] + after.values[(f"evomerge_{name}", "fake", *tags)]

    assert total("evaluations", "search") == results.spent == 40
    assert total("failures", "search", "non_finite") == results.failures["non_finite"] > 0
    assert total("documents") == results.costs["search"].documents
    assert total("idle_seconds") >= 0

    def gauge(name, *tags):
        return after.values[(f"evomerge_{name}", "fake", *tags)]

    front = np.array([results.chooser.maximised(c, "search") for c in results.front])
    scaled = results.chooser.preference.scaled(front)
    assert gauge("candidates") == len(results.candidates)
    assert gauge("front_size") == len(front)
    assert [gauge("best", name) for name in results.chooser.names] == front.max(axis=0).tolist()
    assert gauge("best", "joint") == results.chooser.number(results.front[0], "search")
    assert gauge("hypervolume") == pytest.approx(hypervolume(scaled, np.zeros(2)))
    assert gauge("workers", "idle") == 1


def test_nothing_is_told_of_a_search_without_measurements(tmp_path):
    file = search_file(tmp_path)
    meters = Meters()
    with started(file) as search:
        SearchMetrics(meters, search.record, file, search._dispatcher).send()
    assert not {name for name, *_ in meters.values} & {"evomerge_best", "evomerge_hypervolume"}
    assert finish(file).state == "finished"
