"""The compiled kernels against the plain ones, which take sources of different dtypes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import cpu, cpu_counts
from evomerge.merging.competition import Agreed, Balanced, Signs, Stitched, Strongest, pcb_scores, score_limits
from evomerge.merging.compiled.elements import BLOCK
from evomerge.merging.elementwise import Elementwise, Near, Touched, shared_ratios
from evomerge.merging.grid import Grid
from evomerge.merging.keeps import KeepBand, KeepBelow, KeepDrawn, KeepImportant, KeepLarge, KeepRanked
from evomerge.merging.kernels import Combination, Election, Scratch
from evomerge.merging.masks import MaskKey
from evomerge.merging.order_statistics import order_statistics
from evomerge.merging.ranked import rank_limits, row_ranks
from evomerge.merging.rows import VectorCombination
from evomerge.merging.sce import Fusion
from evomerge.merging.selection import SMALL, Selector
from evomerge.merging.terms import Term
from evomerge.merging.virtual import Addition

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 7, BLOCK, 3 * BLOCK + 5, 7 * BLOCK)


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
        *by_row(size),
    )


def by_row(size):
    """Selections that look at rows: a tensor of size x 1, or of rows of 7."""
    width = 7 if size % 7 == 0 else 1
    random = torch.Generator().manual_seed(2)
    ranks = torch.stack([torch.randperm(width, generator=random) for _ in range(size // width)]).view(-1)
    yield KeepRanked(MaskKey(5, "expert"), "a.weight", ranks.to(torch.uint16), rank_limits(0.6, 0.5, width))
    yield KeepImportant(torch.rand(size // width, generator=random), Grid.of("rows", (size // width, width)), 0.04)


def rules():
    weights = (0.5, -0.25, 1.0)
    return Touched(0.05, (1.1, 1.0, 0.9)), Strongest(weights), Agreed(weights, 0.4, 2)


def vectors(size):
    """Sums of prepared vectors, and coefficients by row and by column."""
    random = torch.Generator().manual_seed(3)
    yield Addition(0, torch.randn(2, size, generator=random).bfloat16(), (0.4, -0.3), 1.2)
    width = 7 if size % 7 == 0 else 1
    for axis in ("rows", "columns"):
        grid = Grid.of(axis, (size // width, width))
        yield VectorCombination(0, (1, 3), torch.randn(2, grid.count, generator=random), grid, 0.8)


def kernels(size):
    few = (Term(1, 0.5), Term(2, -0.25, rescale=1.5), Term(3, 1.0))
    for keep in keeps(size):
        terms = (Term(1, 0.5, keep), Term(2, -0.25, keep, 1.5), Term(3, 1.0))
        yield Combination(0, 0.9, terms)
        yield Combination(2, 1.0, terms[:1])
        yield from (Election(0, 0.8, normalize, terms) for normalize in (True, False))
        if not isinstance(keep, KeepBand):
            yield Fusion(0, (1, 2, 3), (0.5, 0.3, 0.2), 1.1, keep)
        yield from (Elementwise(0, (1, 2, 3), rule((0.5, -0.25, 1.0), (keep,) * 3), 0.9) for rule in (Stitched, Signs))
    yield from (Elementwise(0, (1, 2, 3), rule, 0.9) for rule in rules())
    yield from vectors(size)
    yield from (Combination(0, 0.9, few[:count]) for count in range(4))
    yield Combination(0, 1.0, (*few, *few))


def test_sources_of_different_dtypes_are_taken(size=3 * BLOCK + 5):
    tensors = sources(size, torch.float32)
    several = [tensor.to(dtype) for tensor, dtype in zip(tensors, (*DTYPES, torch.float32), strict=True)]
    assert cpu.fits(several)
    for kernel in kernels(size):
        (fast, _), (plain, _) = run(kernel, several), run(kernel, mixed([tensor.float() for tensor in several]))
        torch.testing.assert_close(fast, plain, rtol=4e-7, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_competition_is_balanced_as_in_the_plain_kernel(scale):
    """Also where tanh is no longer its argument; elements next to 0 in the divisor may be apart."""
    size = 3 * BLOCK + 5
    tensors = [scale * tensor for tensor in sources(size, torch.float32)]
    rule = Balanced((0.5, -0.25, 1.0), ((0.0, 0.3 * scale),) * 3, ((0.0, 0.5 * scale**2),) * 3)
    (fast, _), (plain, _) = (run(Elementwise(0, (1, 2, 3), rule), each) for each in (tensors, mixed(tensors)))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5 * scale)


def test_near_swap_equals_the_plain_kernel(size=BLOCK + 3):
    tensors = sources(size, torch.bfloat16)
    kernel = Elementwise(0, (3,), Near(0.03))
    torch.testing.assert_close(run(kernel, tensors)[0], run(kernel, mixed(tensors))[0], rtol=4e-7, atol=1e-6)


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
    norms = cpu_counts.kept_norms(tensors[0], tensors[1], keeps(size)[1])
    counts = cpu_counts.count_magnitudes(tensors[0], tensors[1:], shift=15, first=0, bins=1 << 16)
    one = [run(kernel, tensors)[0] for kernel in every]
    try:
        torch.set_num_threads(3)
        assert all(torch.equal(run(kernel, tensors)[0], alone) for kernel, alone in zip(every, one, strict=True))
        assert cpu_counts.kept_norms(tensors[0], tensors[1], keeps(size)[1]) == norms
        again = cpu_counts.count_magnitudes(tensors[0], tensors[1:], shift=15, first=0, bins=1 << 16)
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
        if isinstance(kernel, Addition):
            continue
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
    names, ranks = ("a",), (0, 17, size // 2, size - 1)
    assert fast.magnitudes(3, names, ranks) == slow.magnitudes(3, names, ranks)
    assert fast.magnitudes(3, names, ranks) == tuple(order_statistics(lambda: [delta_of(tensors, 3).abs()], ranks))
    for epsilon in (0.0, 0.05, 0.3):
        assert shared_ratios(fast, (1, 2, 3), "a", epsilon) == shared_ratios(slow, (1, 2, 3), "a", epsilon)
    key = MaskKey(3, "expert")
    keep = fast.drawn(3, "a", 0.3, key)
    assert fast.l1_rescale(3, "a", key, keep) == pytest.approx(slow.l1_rescale(3, "a", key, keep), rel=1e-12)


def delta_of(tensors, number):
    return tensors[number].float() - tensors[0].float()


@pytest.mark.parametrize("width", [1, 33, 100])
def test_ranks_within_rows_equal_the_plain_ones(width):
    """Of values on a grid, so that many are equal."""
    tensors = [(tensor * 8).round() / 8 for tensor in sources(3300, torch.float32)]
    ranks = cpu_counts.rank_rows(tensors[0], tensors[1], width)
    assert torch.equal(ranks.int(), row_ranks(delta_of(tensors, 1), width))


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_limits_of_scores_are_order_statistics_of_the_scores(scale):
    tensors = [scale * tensor for tensor in sources(SMALL + 99, torch.float32)]
    selector = Selector([lambda _, t=t: t for t in tensors], 0)
    sizes = ((0.001 * scale, 0.3 * scale), (0.0, 0.4 * scale), (0.0, 0.0))
    scores = pcb_scores([delta_of(tensors, number) for number in (1, 2, 3)], sizes)
    for rank in (0, 1000, SMALL, SMALL + 98):
        found = score_limits(selector, (1, 2, 3), ("a",), sizes, rank)
        for limits, values in zip(found, scores, strict=True):
            ordered = values.sort().values
            assert limits == pytest.approx((float(ordered[rank]), float(ordered[-1])), rel=2e-6, abs=1e-30)


def test_ranks_asked_for_again_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    tensors = sources(SMALL + 64, torch.bfloat16)
    selector = Selector([lambda _, t=t: t for t in tensors], 0, {"a": ((SMALL + 64) // 32, 32)})
    found = [selector.drawn_by_rank(1, "a", 0.5, 0.3, MaskKey(1, "e"), content="both") for _ in range(3)]
    assert all(torch.equal(keep.field.int(), found[0].field.int()) for keep in found)
    assert len(list((tmp_path / "ranks").rglob("a.safetensors"))) == 1
    fresh = Selector([lambda _, t=t: t for t in tensors], 0, {"a": ((SMALL + 64) // 32, 32)})
    fresh.drawn_by_rank(2, "a", 0.5, 0.3, MaskKey(1, "e"), content="another")  # once is not again
    assert len(list((tmp_path / "ranks").rglob("a.safetensors"))) == 1


@pytest.mark.parametrize("rare", [0, 1], ids=["counted", "collected"])
@pytest.mark.parametrize("step", [0.0, 1 / 64], ids=["scattered", "tied"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_nth_largest_magnitude_and_the_first_of_its_equals_are_found(monkeypatch, rare, step, threads):
    """However it is found: by counting, or by collecting what is near it."""
    size, before = 3 * (1 << 17) + 11, torch.get_num_threads()
    monkeypatch.setattr(cpu_counts, "RARE", rare or size)
    base, expert = sources(size, torch.float32)[:2]
    if step:
        base, expert = torch.zeros(size), (expert / step).round() * step
    moved = (expert - base).abs()
    order = torch.argsort(moved, descending=True, stable=True)
    bits = np.sort(moved.numpy().view(np.uint32))[::-1].astype(np.int64)
    try:
        torch.set_num_threads(threads)
        for nth in (1, 2, size // 3, size // 2, int((moved > 0).sum())):
            low = int(bits[nth - 1]) >> 15 << 15
            high, above = low + (1 << 15) - 1, int((bits > low + (1 << 15) - 1).sum())
            held = int(((bits >= low) & (bits <= high)).sum())
            found = cpu_counts.pick(base, [expert], low, high, held=held, wanted=nth - above)
            assert found == (float(moved[order[nth - 1]]), int(order[nth - 1]))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_guess_is_right_or_none(threads):
    """Of differences of 16-bit numbers frequent values are found, and rare ones between them; of others none."""
    size, before = 3 * (1 << 17) + 11, torch.get_num_threads()
    base, expert = sources(size, torch.float32)[:2]
    rounded = [(0.02 * base).bfloat16(), (0.02 * base + 0.0005 * (expert - base)).bfloat16()]
    zeros = [torch.zeros(size).bfloat16()] * 2
    try:
        torch.set_num_threads(threads)
        for first, second, ranks in ((*rounded, range(1, size, 3571)), (*zeros, range(1, size, 39119))):
            moved = (second.float() - first.float()).abs()
            order = torch.argsort(moved, descending=True, stable=True)
            guesses = {nth: cpu_counts.guess(first, second, nth) for nth in ranks}
            found = {nth: guess for nth, guess in guesses.items() if guess is not None}
            assert len(found) > 0.9 * len(guesses)
            assert found == {nth: (float(moved[order[nth - 1]]), int(order[nth - 1])) for nth in found}
            held = [int((moved == limit).sum()) for limit, _ in found.values()]
            assert first is zeros[0] or (min(held) < size // 256 < max(held))
        assert cpu_counts.guess(base, expert, size // 2) is None
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_does_not_depend_on_how_a_threshold_was_found(monkeypatch, dtype):
    """Guessed once, where there are 16 bits, and by the histogram from then on."""
    base, expert = sources(2 * SMALL, torch.float32)[:2]
    tensors = [(0.02 * base).to(dtype), (0.02 * base + 0.0005 * (expert - base)).to(dtype)]
    counted, count = [], cpu_counts.count_magnitudes
    monkeypatch.setattr(cpu_counts, "count_magnitudes", lambda *a, **k: counted.append(k["shift"]) or count(*a, **k))

    for density in (0.3, 0.5, 0.7):
        first, second = (Selector([lambda _, t=t: t for t in tensors], 0) for _ in range(2))
        counted.clear()
        guessed = first.largest(1, "a", density)
        assert bool(counted) == (dtype is torch.float32)
        second.largest(1, "a", 0.9)
        assert second.largest(1, "a", density) == guessed
        assert 15 in counted
