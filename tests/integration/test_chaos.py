"""Ten injected faults; `benchmarks/chaos.py` counts hundreds. What they are and what must hold: tests/faults/."""

from contextlib import closing

import pytest
from faults.checks import Graveyard
from faults.places import Cluster, Disk
from faults.plans import make_plan
from faults.trial import Fault, Plan, Trial

pytestmark = pytest.mark.slow

SOBOL = (("kind", "sobol"), ("seed", 3))
JUMPS = (-86_400.0, 1e7)


def plan(platform, workers, evaluations, *kinds):
    return Plan(platform, SOBOL, workers, evaluations, tuple(Fault(kind, 5, 0.03) for kind in kinds), JUMPS)


def struck(report):
    assert report.wrong == []
    assert report.skipped == {}
    return sum(report.struck.values())


def test_faults_on_one_machine(tmp_path):
    disk = Disk(tmp_path / "disk")
    disk.close()
    kinds = ("driver", "twice", "disk" if disk.is_real else "pages", "clock", "hang")
    graveyard = Graveyard()
    assert struck(Trial(plan("in_process", 3, 400, *kinds), graveyard).run()) == 5
    assert graveyard.wait() == []


def test_faults_on_a_server(postgres):
    report = Trial(plan("postgresql", 1, 300, "server", "driver"), Graveyard(), server=postgres).run()
    assert struck(report) == 2


def test_faults_on_a_cluster():
    with closing(Cluster()) as cluster:
        report = Trial(plan("cluster", 4, 500, "worker", "partition", "driver"), Graveyard(), cluster=cluster).run()
        assert struck(report) == 3
        assert report.reads > 0


def test_a_campaign_is_the_same_whenever_it_is_drawn():
    plans = [make_plan(0, number, disk_is_real=True) for number in range(20)]
    assert plans == [make_plan(0, number, disk_is_real=True) for number in range(20)]
    assert plans != [make_plan(1, number, disk_is_real=True) for number in range(20)]
    assert {plan.platform for plan in plans} == {"in_process", "postgresql", "ray", "cluster"}
