"""The files of examples/cluster, as far as they can be checked without a cluster."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from evomerge.config import load
from evomerge.submission import COMMAND, check_submittable

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "cluster"


def read(name):
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def cluster_spec(name):
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def containers(spec):
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_search_file_can_be_submitted():
    check_submittable(load(FOLDER / "search.yaml"))


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kubernetes_manifests(name):
    spec = cluster_spec(name)
    assert spec["rayVersion"] == version("ray")
    for container in containers(spec):
        environment = {each["name"]: each for each in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        for secret in ("RAY_AUTH_TOKEN", "PGPASSWORD"):
            assert environment[secret]["valueFrom"]["secretKeyRef"] == {"name": "evomerge", "key": secret}
            assert "value" not in environment[secret]
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == volumes
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_job_runs_what_submit_runs():
    entrypoint = read("rayjob.yaml")["spec"]["entrypoint"].split()
    assert entrypoint[:-1] == list(COMMAND[:-1])
    assert entrypoint[-1].rpartition("/")[2] == COMMAND[-1]
    worker = cluster_spec("rayjob.yaml")["workerGroupSpecs"][0]["template"]["spec"]
    mounts = {mount["mountPath"] for mount in worker["containers"][0]["volumeMounts"]}
    assert entrypoint[-1].rpartition("/")[0] in mounts


VALIDATE = """
import sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
config = prepare_config(yaml.safe_load(open(sys.argv[1])))
validate_config(config)
print(*config["provider"]["worker_ips"])
"""


@pytest.mark.slow
def test_the_ray_cluster_file_is_one():
    """In a process of its own: Ray keeps for a process how it was imported."""
    done = subprocess.run(
        [sys.executable, "-c", VALIDATE, FOLDER / "ray-cluster.yaml"], capture_output=True, text=True, cwd=FOLDER
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["10.0.0.2", "10.0.0.3"]
