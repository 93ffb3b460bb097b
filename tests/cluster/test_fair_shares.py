import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.fair_shares import Claim, fair_shares, room

CPU, GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}


@st.composite
def clusters(draw):
    """Claims of pools with various needs, and what they share."""
    needs = st.fixed_dictionaries({"CPU": st.sampled_from([0.5, 1.0, 2.0]), "GPU": st.sampled_from([0.0, 0.5, 1.0])})
    claims = [
        Claim(f"pool {number}", draw(needs), draw(st.integers(0, 9)), draw(st.sampled_from([1, 3, math.inf])))
        for number in range(draw(st.integers(1, 5)))
    ]
    return claims, {"CPU": float(draw(st.integers(0, 40))), "GPU": float(draw(st.integers(0, 8)))}


def used(claims, shares):
    return {kind: sum(shares[c.pool] * c.needs[kind] for c in claims) for kind in ("CPU", "GPU")}


@given(clusters())
def test_shares_fit_and_leave_nothing_that_somebody_could_use(cluster):
    claims, whole = cluster
    shares = fair_shares(claims, whole)
    left = {kind: whole[kind] - amount for kind, amount in used(claims, shares).items()}
    assert min(left.values()) >= 0
    for claim in claims:
        assert shares[claim.pool] <= claim.most
        assert shares[claim.pool] == claim.most or room(left, claim.needs) == 0


@given(whole=st.integers(0, 60), held=st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_equal_needs_get_equal_shares(whole, held):
    claims = [Claim(str(number), CPU, count) for number, count in enumerate(held)]
    shares = fair_shares(claims, {"CPU": float(whole)})
    assert sum(shares.values()) == whole
    assert max(shares.values()) - min(shares.values()) <= 1


@given(pools=st.permutations(range(5)), each=st.integers(0, 9), odd=st.integers(0, 4))
def test_the_odd_ones_stay_where_they_are(pools, each, odd):
    held = {str(pool): each + (place < odd) for place, pool in enumerate(pools)}
    claims = [Claim(pool, CPU, count) for pool, count in sorted(held.items())]
    assert fair_shares(claims, {"CPU": float(5 * each + odd)}) == held


@settings(max_examples=500)
@given(clusters())
def test_what_is_shared_so_stays_so(cluster):
    claims, whole = cluster
    shares = fair_shares(claims, whole)
    settled = [Claim(claim.pool, claim.needs, shares[claim.pool], claim.most) for claim in claims]
    assert fair_shares(settled, whole) == shares


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([Claim("a", CPU)], {"a": 16}),
        ([Claim("a", CPU, 16), Claim("b", CPU)], {"a": 8, "b": 8}),
        ([Claim("a", CPU, 16), Claim("b", CPU, most=2)], {"a": 14, "b": 2}),  # it wants no more
        ([Claim("a", CPU), Claim("b", GPU)], {"a": 13, "b": 3}),  # three quarters each, and the odd CPU
        ([Claim("a", GPU), Claim("b", {"CPU": 1.0, "GPU": 0.5})], {"a": 2, "b": 4}),  # half of the GPUs each
    ],
)
def test_examples(claims, expected):
    assert fair_shares(claims, {"CPU": 16.0, "GPU": 4.0}) == expected


def test_more_pools_than_workers_leave_those_that_hold_them_alone():
    claims = [Claim("a", CPU), Claim("b", CPU, 1), Claim("c", CPU, 1)]
    assert fair_shares(claims, {"CPU": 2.0}) == {"a": 0, "b": 1, "c": 1}


@given(workers=st.integers(0, 200), need=st.sampled_from([0.1, 0.2, 0.25, 0.3, 1.0, 1.5, 4.0]))
def test_exactly_as_many_workers_fit_as_fill_the_node(workers, need):
    assert room({"CPU": workers * need}, {"CPU": need, "GPU": 0.0}) == workers


@given(cpus=st.integers(0, 64), gpus=st.integers(0, 8))
def test_the_scarcer_resource_decides(cpus, gpus):
    offers = {"CPU": float(cpus), "GPU": float(gpus)} if gpus else {"CPU": float(cpus)}
    assert room(offers, {"CPU": 4.0, "GPU": 0.5}) == min(cpus // 4, gpus * 2)
    assert room(offers, {"CPU": 0.0, "GPU": 1.0}) == gpus


@pytest.mark.parametrize(
    ("part", "devices", "most"), [(0.4, 2, 4), (0.4, 1, 2), (0.3, 3, 9), (0.5, 2, 4), (0.1, 2, 20), (0.7, 4, 4)]
)
def test_part_of_a_gpu_is_part_of_one_device(part, devices, most):
    needs, offers = {"CPU": 1.0, "GPU": part}, {"CPU": 100.0, "GPU": float(devices)}
    assert room(offers, needs) == most
    for there in range(most + 1):  # the more of such workers run, the fewer fit
        left = {"CPU": 100.0 - there, "GPU": devices - there * part}
        assert room(left, needs, offers) == most - there


def test_whole_gpus_of_others_are_not_taken_for_parts():
    offers = {"CPU": 8.0, "GPU": 2.0}
    assert room({"CPU": 8.0, "GPU": 1.0}, {"GPU": 0.4}, offers) == 2
    assert room({"CPU": 8.0, "GPU": 1.0}, {"GPU": 0.25}, offers) == 4
    assert room({"CPU": 8.0, "GPU": 1.0}, {"GPU": 1.0}, offers) == 1
    assert room({"CPU": 1.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 0.4}, offers) == 1
