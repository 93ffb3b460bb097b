"""The compiled kernels against the plain ones, which take sources of different dtypes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import cpu
from evomerge.merging.compiled.elements import BLOCK
from evomerge.merging.keeps import KeepBand, KeepBelow, KeepDrawn, KeepLarge
from evomerge.merging.kernels import Combination, Election, Scratch
from evomerge.merging.masks import MaskKey
from evomerge.merging.sce import Fusion
from evomerge.merging.selection import SMALL, Selector
from evomerge.merging.terms import Term

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 7, BLOCK, 3 * BLOCK + 5)


def sources(size, dtype, count=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=random)
    return [base.to(dtype), *((base + 0.1 * torch.randn(size, generator=random)).to(dtype) for _ in range(count - 1))]


def mixed(tensors):
    """The same values, one source in another dtype: what the compiled kernels do not take."""
    return [*tensors[:-1], tensors[-1].double()]


def run(kernel, tensors, dtype=torch.float32):
    out, scratch = torch.full((tensors[0].numel(),), 7.0, dtype=dtype), Scratch(torch.device("cpu"))
    kernel.run(tensors, out, scratch)
    return out, scratch.healthy()


def keeps(size):
    field = torch.randperm(size, dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    drawn = KeepDrawn(MaskKey(5, "expert"), "a.weight", -(2**30))
    large = KeepLarge(0.08, size // 2)
    return (
        None,
        large,
        KeepBelow(field, size // 3),
        drawn,
        KeepBand(None, large),
        KeepBand(large, KeepLarge(0.15, -1)),
    )


def kernels(size):
    few = (Term(1, 0.5), Term(2, -0.25, rescale=1.5), Term(3, 1.0))
    for keep in keeps(size):
        terms = (Term(1, 0.5, keep), Term(2, -0.25, keep, 1.5), Term(3, 1.0))
        yield Combination(0, 0.9, terms)
        yield Combination(2, 1.0, terms[:1])
        yield from (Election(0, 0.8, normalize, terms) for normalize in (True, False))
        if not isinstance(keep, KeepBand):
            yield Fusion(0, (1, 2, 3), (0.5, 0.3, 0.2), 1.1, keep)
    yield from (Combination(0, 0.9, few[:count]) for count in range(4))
    yield Combination(0, 1.0, (*few, *few))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_plain_kernels(size, dtype):
    tensors = sources(size, dtype)
    assert cpu.fits(tensors)
    assert not cpu.fits(mixed(tensors))
    for kernel in kernels(size):
        (fast, fast_healthy), (plain, plain_healthy) = run(kernel, tensors), run(kernel, mixed(tensors))
        torch.testing.assert_close(fast, plain, rtol=4e-7, atol=1e-6)
        assert fast_healthy
        assert plain_healthy
        for narrow in DTYPES[1:]:
            assert torch.equal(run(kernel, tensors, narrow)[0], fast.to(narrow))


def test_a_result_does_not_depend_on_the_number_of_threads():
    size = 3 * (1 << 17) + 11
    tensors, before = sources(size, torch.bfloat16), torch.get_num_threads()
    every = list(kernels(size))
    norms = cpu.kept_norms(tensors[0], tensors[1], keeps(size)[1])
    counts = cpu.count_magnitudes(tensors[0], tensors[1:], shift=15, first=0, bins=1 << 16)
    one = [run(kernel, tensors)[0] for kernel in every]
    try:
        torch.set_num_threads(3)
        assert all(torch.equal(run(kernel, tensors)[0], alone) for kernel, alone in zip(every, one, strict=True))
        assert cpu.kept_norms(tensors[0], tensors[1], keeps(size)[1]) == norms
        again = cpu.count_magnitudes(tensors[0], tensors[1:], shift=15, first=0, bins=1 << 16)
        assert (again == counts).all()
        assert counts.sum() == size
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_noticed_and_never_dropped(dtype, bad):
    tensors = sources(BLOCK + 3, dtype)
    tensors[1][BLOCK + 1] = bad
    for kernel in kernels(BLOCK + 3):
        if isinstance(kernel, Combination) and not any(term.source == 1 for term in kernel.terms):
            continue
        out, healthy = run(kernel, tensors)
        assert healthy == bool(torch.isfinite(out).all())
        assert not healthy


def test_an_overflow_of_float16_is_noticed():
    tensors = [torch.full((5,), 60000.0), torch.full((5,), 64000.0)]
    out, healthy = run(Combination(0, 1.0, (Term(1, 2.0),)), tensors, torch.float16)
    assert torch.isinf(out).all()
    assert not healthy


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.001, 0.999), seed=st.integers(0, 1000), grid=st.sampled_from([1e-2, 1e-4]))
def test_a_large_tensor_keeps_exactly_the_largest(share, seed, grid):
    """Values on a grid, so that many magnitudes are equal; the first of equals count."""
    size = SMALL + 100
    base = torch.zeros(size)
    expert = (torch.randn(size, generator=torch.Generator().manual_seed(seed)) / grid).round() * grid
    selector = Selector([lambda _: base, lambda _: expert], 0)
    keep = selector.largest(1, "a", share)
    kept = keep.mask(0, size, expert.clone(), torch.empty(size)).bool().numpy()
    order = np.argsort(-np.abs(expert.numpy()), kind="stable")[: max(1, int(share * size))]
    expected = np.zeros(size, bool)
    expected[order] = True
    differs = kept != expected
    assert not np.abs(expert.numpy()[differs]).any()  # zeros may be kept or dropped


def test_tables_of_selections_equal_those_of_the_plain_code():
    size = SMALL + 4321
    tensors = sources(size, torch.bfloat16)
    plain = mixed(tensors)
    fast, slow = (Selector([lambda _, t=t: t for t in each], 0) for each in (tensors, plain))
    for selector_share in (0.1, 0.5):
        assert fast.largest(3, "a", selector_share) == slow.largest(3, "a", selector_share)
        assert fast.varied((1, 2, 3), "a", selector_share) == slow.varied((1, 2, 3), "a", selector_share)
        count, keep = fast.varied((1, 2, 3), "a", selector_share)
        energies = fast.energies((1, 2, 3), "a", count, keep), slow.energies((1, 2, 3), "a", count, keep)
        np.testing.assert_allclose(*energies, rtol=1e-12)
    key = MaskKey(3, "expert")
    keep = fast.drawn(3, "a", 0.3, key)
    assert fast.l1_rescale(3, "a", key, keep) == pytest.approx(slow.l1_rescale(3, "a", key, keep), rel=1e-12)
