"""A pool follows its cluster: on a Ray without processes, whose nodes and other pools a test moves as it likes."""

import itertools
import sys
from types import SimpleNamespace

import cloudpickle
import pytest

from cluster import ray_pool
from cluster.pool import Call, Finished, Returned
from cluster.ray_pool import RayPool
from cluster.ray_session import RaySession
from cluster.sharing import Demand
from cluster.testing import Probe


class FakeRay:
    """The part of Ray that pools use. An actor runs when there is room; a call that it has ends when a test says so."""

    def __init__(self, *cpus):
        self.cpus = list(cpus)
        self.cloudpickle = cloudpickle
        self.exceptions = SimpleNamespace(RayError=RuntimeError)
        self.util = SimpleNamespace(list_named_actors=self._names)
        self.others = []  # names of other pools' actors
        self.actors = []
        self.held = []  # calls that have not come back
        self._references = itertools.count()
        self._results = {}

    def is_initialized(self):
        return True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": float(count)}} for count in self.cpus]

    def remote(self, kind):
        return SimpleNamespace(options=lambda **needs: FakeActorClass(self, kind, needs))

    def wait(self, references, num_returns, timeout):
        if not any(reference in self._results for reference in references) and self.held:
            self.release()
        ready = [reference for reference in references if reference in self._results][:num_returns]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference):
        return self._results.pop(reference)

    def kill(self, actor, no_restart):
        self.actors.remove(actor)

    def release(self):
        reference, work = self.held.pop(0)
        self._results[reference] = work()

    def call(self, work, *, at_once):
        reference = next(self._references)
        if at_once:
            self._results[reference] = work()
        else:
            self.held.append((reference, work))
        return reference

    def _names(self, all_namespaces):
        assert all_namespaces
        return [{"name": name, "namespace": "x"} for name in [*self.others, *(actor.name for actor in self.actors)]]


class FakeActorClass:
    def __init__(self, ray, kind, needs):
        self._ray, self._kind, self._needs = ray, kind, needs

    def options(self, **more):
        return FakeActorClass(self._ray, self._kind, self._needs | more)

    def remote(self, threads):
        host, ray = self._kind(threads), self._ray
        actor = SimpleNamespace(
            name=self._needs["name"],
            start=SimpleNamespace(remote=lambda factory: ray.call(lambda: host.start(factory), at_once=True)),
            run=SimpleNamespace(remote=lambda payload: ray.call(lambda: host.run(payload), at_once=False)),
        )
        ray.actors.append(actor)
        return actor


class FakeSession(RaySession):
    """A session on a Ray that is there already."""

    def __init__(self, ray):
        self.ray, self.owned = ray, False

    def node_is_alive(self):
        return True

    def close(self):
        pass


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of one node with four CPUs; a pool looks at it whenever it waits."""
    monkeypatch.setattr(ray_pool, "LOOK_EVERY_SECONDS", 0.0)
    ray = FakeRay(4)
    monkeypatch.setitem(sys.modules, "ray", ray)  # the real one keeps the first token that it sees in a process
    monkeypatch.setattr(ray_pool, "RaySession", lambda *_, **__: FakeSession(ray))
    return ray


def other_pool(cpus, most=None):
    return [Demand("other", cpus, 0.0, most).actor_name(number) for number in range(3)]


def echo(pool, value):
    return pool.submit(Call("echo", (value,)))


def test_a_pool_grows_with_the_nodes_that_join_and_shrinks_with_those_that_leave(cluster):
    pool = RayPool(Probe)
    assert (pool.workers, pool.free) == (4, 4)
    cluster.cpus.append(2)
    pool.wait()
    assert (pool.workers, pool.free) == (6, 6)
    cluster.cpus = [1]
    pool.wait()
    assert (pool.workers, len(cluster.actors)) == (1, 1)
    pool.close()
    assert cluster.actors == []


def test_a_pool_never_has_more_workers_than_asked_for(cluster):
    pool = RayPool(Probe, workers=3)
    cluster.cpus.append(8)
    pool.wait()
    assert pool.workers == 3


def test_a_pool_makes_room_for_another_and_takes_it_back(cluster):
    pool = RayPool(Probe)
    cluster.others = other_pool(1.0)
    pool.wait()
    assert pool.workers == 2
    cluster.others = []
    pool.wait()
    assert pool.workers == 4


def test_no_call_is_broken_off_to_make_room(cluster):
    pool = RayPool(Probe)
    tickets = [echo(pool, value) for value in range(4)]
    cluster.others = other_pool(1.0)
    found = []
    while len(found) < 4:
        found += pool.wait(1.0)
        assert pool.free >= 0
    assert sorted(found) == [Finished(ticket, Returned(ticket)) for ticket in tickets]
    assert (pool.workers, pool.free, len(cluster.actors)) == (2, 2, 2)


def test_a_cluster_without_a_node_for_it_leaves_a_pool_as_it_is(cluster):
    pool = RayPool(Probe)
    cluster.cpus = []
    pool.wait()
    assert pool.workers == 4
    cluster.cpus = [2]
    pool.wait()
    assert pool.workers == 2
