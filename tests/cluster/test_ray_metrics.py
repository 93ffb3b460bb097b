import time
import urllib.request

import pytest

from cluster.ray_metrics import Meters
from cluster.ray_session import RaySession

pytestmark = pytest.mark.slow


def served(session: RaySession) -> dict[str, float]:
    """What the exporter of this node serves of ours: values by name and first tag."""
    [node] = session.ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("ray_evomerge_test_"):
            search = line.partition('search="')[2].partition('"')[0]
            found[f"{line.partition('{')[0]} {search}"] = float(line.rpartition(" ")[2])
    return found


def test_the_exporter_serves_what_was_counted(ray_session: RaySession) -> None:
    meters = Meters()
    meters.count("evomerge_test_evaluations", 2, "candidates", search="a")
    meters.count("evomerge_test_evaluations", 3, "candidates", search="a")
    meters.count("evomerge_test_evaluations", 0, "nothing", search="b")
    meters.gauge("evomerge_test_best", 0.25, "the best", search="a")
    meters.gauge("evomerge_test_best", 0.5, "the best", search="a")
    expected = {"ray_evomerge_test_evaluations_total a": 5.0, "ray_evomerge_test_best a": 0.5}
    give_up = time.monotonic() + 90
    while (found := served(ray_session)) != expected and time.monotonic() < give_up:  # it is told every ten seconds
        time.sleep(0.5)
    assert found == expected
