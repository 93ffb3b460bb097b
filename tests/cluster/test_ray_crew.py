"""How a crew of actors grows, shrinks and loses nodes, and how pools hear of each other, on a Ray that is a fake."""

import itertools
import json
from types import SimpleNamespace

import pytest

from cluster import ray_crew, ray_watch
from cluster.pool import Place
from cluster.ray_crew import PLACED_WITHIN_SECONDS, Crew
from cluster.ray_watch import PREFIX, SILENT_SECONDS, Watch

NODES = frozenset({"one", "two"})


class FakeRay:
    """Actors are made in order; each answers what the test lets it answer."""

    exceptions = SimpleNamespace(RayError=ConnectionError)

    def __init__(self):
        self.answers, self.killed, self.made = {}, [], []
        self._references = itertools.count()

    def remote(self, _class):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._make))

    def _make(self, _threads):
        def method():
            return SimpleNamespace(remote=lambda *_: next(self._references))

        self.made.append(SimpleNamespace(place=method(), start=method()))
        return self.made[-1]

    def wait(self, references, num_returns, timeout):
        return [reference for reference in references if reference in self.answers], []

    def get(self, reference):
        if isinstance(self.answers[reference], Exception):
            raise self.answers[reference]
        return self.answers[reference]

    def kill(self, handle, no_restart):
        self.killed.append(self.made.index(handle))


class Clock:
    def __init__(self, monkeypatch, module):
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch, ray_crew)


@pytest.fixture
def ray():
    return FakeRay()


@pytest.fixture
def crew(ray, clock):
    return Crew(ray, b"", cpus=1.0, gpus=0.0, max_restarts=3)


def place(crew, ray, count, node="one"):
    """Give ``count`` actors a place."""
    for reference in list(crew.placing)[:count]:
        ray.answers[reference] = Place(node, "host", 1)
    crew.hear_all()


def ready(crew, ray, count):
    """Let the workers of ``count`` actors be made."""
    for reference in list(crew.starting)[:count]:
        ray.answers[reference] = None
    crew.hear_all()


def test_grows_into_the_room_that_is_seen_and_no_further(crew, ray):
    crew.grow(2)
    place(crew, ray, 2)
    crew.resize(5, room=1, nodes=NODES)
    assert (crew.lines, crew.held) == (3, 3)
    crew.resize(5, room=1, nodes=NODES)
    assert crew.lines == 3  # the room may be that of the actor which has no place yet
    place(crew, ray, 1)
    crew.resize(5, room=9, nodes=NODES)
    assert crew.lines == 5


def test_one_line_stays_where_there_is_no_room(crew, ray):
    crew.grow(1, hoped=True)
    assert crew.held == 0
    crew.resize(0, room=0, nodes=NODES)
    assert (crew.lines, ray.killed) == (1, [])
    place(crew, ray, 1)
    assert crew.held == 1


def test_those_without_a_place_go_first_then_those_that_start_then_the_idle_ones(crew, ray):
    crew.grow(4)
    place(crew, ray, 3)
    ready(crew, ray, 2)
    busy = crew.idle.pop()
    crew.resize(3, room=0, nodes=NODES)
    assert ray.killed == [3]
    crew.resize(2, room=0, nodes=NODES)
    assert ray.killed == [3, 2]
    crew.resize(1, room=0, nodes=NODES)
    assert ray.killed == [3, 2, 0]
    assert (crew.lines, crew.actors) == (1, {busy})


def test_a_busy_worker_is_let_go_when_its_call_has_come_back(crew, ray):
    crew.grow(2)
    place(crew, ray, 2)
    ready(crew, ray, 2)
    first, second = crew.idle.pop(), crew.idle.pop()
    crew.resize(1, room=0, nodes=NODES)
    assert (crew.lines, ray.killed) == (2, [])
    crew.finished(first)
    assert (crew.lines, crew.idle, len(ray.killed)) == (1, [], 1)
    crew.finished(second)
    assert (crew.lines, crew.idle) == (1, [second])


def test_the_dead_go_before_the_living_when_a_node_is_lost(crew, ray):
    crew.grow(2)
    place(crew, ray, 1, node="one")
    place(crew, ray, 1, node="two")
    ready(crew, ray, 2)
    on_two, on_one = sorted((crew.idle.pop(), crew.idle.pop()), key=lambda actor: actor.place.node == "one")
    crew.resize(1, room=0, nodes=frozenset({"one"}))
    crew.finished(on_one)
    assert (crew.lines, ray.killed) == (2, [])  # the other one is lost, only its call is not back yet
    crew.bury(on_two, "its node has died")
    assert (crew.lines, len(ray.made), crew.idle) == (1, 2, [on_one])


def test_an_actor_that_finds_no_place_is_let_go_if_another_has_one(crew, ray, clock):
    crew.grow(2)
    clock.now += PLACED_WITHIN_SECONDS + 1
    crew.resize(2, room=0, nodes=NODES)
    assert (crew.lines, ray.killed) == (1, [1])  # one stays: nobody has a place
    place(crew, ray, 1)
    crew.resize(2, room=1, nodes=NODES)
    clock.now += PLACED_WITHIN_SECONDS + 1
    crew.resize(2, room=0, nodes=NODES)
    assert (crew.lines, ray.killed) == (1, [1, 2])


def test_a_crew_is_left_out_while_none_of_it_has_or_may_expect_a_place(crew, ray, clock):
    assert not crew.is_left_out
    crew.grow(1)
    assert not crew.is_left_out  # room was seen
    clock.now += PLACED_WITHIN_SECONDS + 1
    assert crew.is_left_out  # somebody else was faster
    place(crew, ray, 1)
    assert not crew.is_left_out


def test_a_crew_that_only_hopes_is_left_out_at_once(crew, ray):
    crew.grow(2, hoped=True)
    assert crew.is_left_out
    place(crew, ray, 1)
    assert not crew.is_left_out


def test_a_fixed_crew_keeps_its_lines(crew, ray):
    crew.grow(2)
    place(crew, ray, 2)
    ready(crew, ray, 2)
    crew.finished(crew.idle.pop())
    crew.bury(crew.idle.pop(), "killed")
    assert (crew.lines, len(ray.made)) == (2, 3)


# ---------------------------------------------------------------- pools that hear of each other


class Session:
    """A cluster of 8 CPUs on one node; what pools hold is not in its room."""

    node = "one"

    def __init__(self, texts):
        self.taken, self.there = 0, True
        self.ray = SimpleNamespace(
            is_initialized=lambda: True,
            experimental=SimpleNamespace(
                internal_kv=SimpleNamespace(
                    _internal_kv_put=lambda key, text, namespace: texts.__setitem__(key, text),
                    _internal_kv_get=lambda key, namespace: texts.get(key),
                    _internal_kv_list=lambda prefix, namespace: [key for key in texts if key.startswith(prefix)],
                    _internal_kv_del=lambda key, namespace: texts.pop(key, None),
                )
            ),
        )

    def room(self, needs):
        return 8 - self.taken

    def capacity(self, needs):
        return 8

    def offered(self):
        return {"CPU": 8.0}

    def nodes(self):
        return frozenset({"one"} if self.there else ())


@pytest.fixture
def texts():
    return {}


@pytest.fixture
def session(texts):
    return Session(texts)


@pytest.fixture
def watch(session, monkeypatch):
    monkeypatch.setattr(ray_watch, "LOOK_EVERY_SECONDS", 3600.0)
    made = []

    def make(held=0, most=None, pool=None):
        made.append(Watch(session, {"CPU": 1.0, "GPU": 0.0}, most, pool=pool))
        made[-1].held = held
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_pool_alone_may_have_everything(watch, session):
    view = watch().view
    assert (view.here, view.share, view.room, view.pools) == (True, 8, 8, 1)
    session.there = False
    assert not watch()._look().here


def test_the_one_that_comes_gets_half_of_what_the_first_one_holds(watch, session):
    first = watch(held=8)
    session.taken = 8
    second = watch()
    assert second.view.share == 0  # the first has not said yet what it holds
    assert (first._look().share, second._look().share) == (4, 4)
    assert (first._look().taken, second._look().taken) == (0, 8)
    first.held = 6  # somebody else has taken two CPUs
    assert (first._look().share, second._look().share) == (3, 3)


def test_workers_that_a_pool_does_not_need_go_to_the_others(watch, session):
    first = watch(held=8)
    session.taken = 8
    first.needed = 2
    assert first._look().share == 8  # alone it keeps them
    second = watch()
    assert (first._look().share, second._look().share) == (2, 6)
    first.needed = float("inf")
    assert (first._look().share, second._look().share) == (4, 4)


def test_the_share_of_a_pool_that_falls_silent_returns(watch, session, texts, monkeypatch):
    clock = Clock(monkeypatch, ray_watch)
    first, dead = watch(held=4), watch(held=4)
    session.taken = 8
    dead._look()
    assert [first._look().share, first._look().pools] == [4, 2]
    clock.now += SILENT_SECONDS + 1
    session.taken = 4  # Ray has ended its workers
    assert [first._look().share, first._look().pools] == [8, 1]
    dead._look()
    assert first._look().pools == 2  # it was only slow
    dead.close()
    assert first._look().pools == 1
    assert len(texts) == 1


def test_a_pool_takes_the_place_of_its_dead_self_at_once(watch, session):
    other, dead = watch(held=4, pool="other"), watch(held=4, pool="search")
    session.taken = 8
    dead._look()
    assert [other._look().share, dead._look().share] == [4, 4]
    session.taken = 4  # killed: Ray has ended its workers, its text still stands
    again = watch(pool="search")
    assert [again.view.share, again.view.room, again.view.pools] == [4, 4, 2]
    assert other._look().pools == 2


def test_pools_agree_on_who_gets_the_odd_one(watch, session):
    pools = [watch(held=1) for _ in range(3)]
    session.taken = 3
    for pool in pools:
        pool._look()
    assert sum(pool._look().share for pool in pools) == 8


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"needs": 3}',
        b'{"needs": {"CPU": "many"}, "held": 1, "most": null}',
        b'{"needs": {"CPU": 0}, "held": 1, "most": null}',
        b'{"needs": {"CPU": 1}, "held": null, "most": null}',
    ],
)
def test_what_no_pool_tells_is_not_heard(watch, texts, text):
    texts[PREFIX + b"x"] = text
    assert watch().view.pools == 1


def test_what_a_pool_tells_is_bounded_by_what_there_is(watch, texts):
    texts[PREFIX + b"x"] = json.dumps({"needs": {"CPU": 1.0}, "held": 10**12, "most": None}).encode()
    assert watch().view.share == 4
