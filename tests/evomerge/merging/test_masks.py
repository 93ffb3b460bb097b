import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.masks import MaskKey, draws, mask_keys, threshold
from search_spaces.recipe import Source

KEY = MaskKey(3, "expert")
SIZE = 50_000


def shares(key: MaskKey, name: str, density: float) -> torch.Tensor:
    return draws(key, name, 0, SIZE) < threshold(density)


@given(density=st.floats(0.001, 0.999))
@settings(max_examples=25, deadline=None)
def test_share_kept_is_the_density(density: float) -> None:
    deviation = math.sqrt(density * (1 - density) / SIZE)
    assert abs(shares(KEY, "w", density).double().mean().item() - density) < 5 * deviation + 1 / SIZE


@given(small=st.floats(0, 0.999999), large=st.floats(0, 0.999999))
@settings(max_examples=25, deadline=None)
def test_masks_nest_in_the_density(small: float, large: float) -> None:
    small, large = min(small, large), max(small, large)
    assert not (shares(KEY, "w", small) & ~shares(KEY, "w", large)).any()


@given(start=st.integers(0, 5000), length=st.integers(1, 500))
@settings(max_examples=25, deadline=None)
def test_draws_do_not_depend_on_the_chunk(start: int, length: int) -> None:
    assert torch.equal(draws(KEY, "w", start, start + length), draws(KEY, "w", 0, 6000)[start : start + length])


@pytest.mark.parametrize(
    ("other", "name"),
    [(MaskKey(4, "expert"), "w"), (MaskKey(3, "expert2"), "w"), (KEY, "v")],
    ids=["seed", "expert", "tensor"],
)
def test_masks_of_other_keys_are_independent(other: MaskKey, name: str) -> None:
    """Both kept has probability 1/4, also when one is shifted against the other."""
    mine, its = shares(KEY, "w", 0.5), shares(other, name, 0.5)
    for shift in (0, 1, 64, 1000):
        both = (mine & its.roll(shift)).double().mean().item()
        assert abs(both - 0.25) < 5 * math.sqrt(0.25 * 0.75 / SIZE)


def test_neighbouring_draws_are_independent() -> None:
    kept = shares(KEY, "w", 0.5)
    for lag in (1, 2, 3, 32, 64, 1024):
        both = (kept[lag:] & kept[:-lag]).double().mean().item()
        assert abs(both - 0.25) < 5 * math.sqrt(0.25 * 0.75 / SIZE)


def test_draws_beyond_two_to_the_31_are_others() -> None:
    far = draws(KEY, "w", 2**31, 2**31 + 1000)
    assert not torch.equal(far, draws(KEY, "w", 0, 1000))


def test_draws_are_what_they_always_were() -> None:
    """A change here would change every merge with random masks that was ever recorded."""
    assert draws(KEY, "w", 0, 4).tolist() == RECORDED


RECORDED = [-423867833, -1253610598, -437588795, 1672045424]


def test_keys_name_content_and_number_repetitions() -> None:
    sources = [Source(path="a", digest="d"), Source(path="b", digest="d"), Source(path="c")]
    assert [key.expert for key in mask_keys(1, sources)] == ["d#0", "d#1", "c@#0"]
