"""Shares of a cluster: nobody starves, nobody gets more than he wants, nothing is left that somebody wants."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.sharing import Demand, demands_of, room_on_node, shares

DEMANDS = st.lists(st.none() | st.integers(1, 30), min_size=1, max_size=6).map(
    lambda mosts: [Demand(f"p{n}", 1.0, 0.0, most) for n, most in enumerate(mosts)]
)


def test_one_pool_gets_all_it_wants():
    assert shares([Demand("a", 1, 0)], lambda _: 7) == {"a": 7}
    assert shares([Demand("a", 1, 0, 3)], lambda _: 7) == {"a": 3}
    assert shares([Demand("a", 1, 0, 9)], lambda _: 7) == {"a": 7}


def test_equal_parts_and_what_one_does_not_want_goes_to_the_others():
    auto, other = Demand("a", 1, 0), Demand("b", 1, 0)
    assert shares([auto, other], lambda _: 7) == {"a": 3, "b": 4}
    assert shares([auto, Demand("b", 1, 0, 1)], lambda _: 7) == {"a": 6, "b": 1}


def test_pools_with_workers_of_different_size_get_equal_parts_of_the_cluster():
    small, large = Demand("a", 1, 0), Demand("b", 4, 0)
    assert shares([small, large], lambda d: room_on_node({"CPU": 16}, cpus=d.cpus, gpus=d.gpus)) == {"a": 8, "b": 2}


@given(DEMANDS, st.integers(0, 100))
def test_shares_are_fair(demands, room):
    found = shares(demands, lambda _: room)
    for demand in demands:
        assert 1 <= found[demand.pool] <= max(1, min(demand.most or room, room))
    wanted = sum(min(d.most or room, room) for d in demands)
    if room >= len(demands):
        assert min(wanted, room) - len(demands) <= sum(found.values()) <= room + len(demands)
    autos = [found[d.pool] for d in demands if d.most is None]
    assert not autos or max(autos) - min(autos) <= 1
    assert not autos or max(autos) + 1 >= max(found.values())


@given(DEMANDS, st.integers(0, 5))
def test_demands_are_read_from_names(demands, number):
    names = [demand.actor_name(n) for demand in demands for n in range(number + 1)]
    assert demands_of([*names, "another actor", ""]) == sorted(demands)
