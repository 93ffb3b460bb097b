"""The way from tensors and selections to the compiled kernels: what fits them, in how many threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.compiled import merges, selections
from evomerge.merging.compiled import rules as coded
from evomerge.merging.keeps import Keep, KeepBand, KeepBelow, KeepDrawn, KeepLarge
from evomerge.merging.terms import Term

_BITS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}
_PIECE = 1 << 17  # elements; threads and sums work in such pieces, so that their number changes nothing
_FEW = 4  # terms that one pass sums up
_MOST_DRAWS = 1 << 31  # elements of a tensor that one pair of words draws for
Span = np.ndarray


@dataclass(frozen=True)
class Rules:
    """Selections as the kernels read them, (K, 2): what is kept, and what of that is taken out again."""

    kinds: np.ndarray  # int64 (K, 2)
    limits: np.ndarray  # float32 (K, 2)
    integers: np.ndarray  # int64 (K, 2, 5)
    held: tuple[Tensor, ...]  # fields whose addresses are among the integers

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three arrays in the order of the kernels' arguments."""
        return self.kinds, self.limits, self.integers

    @property
    def trivial(self) -> bool:
        """Whether everything is kept."""
        return not self.kinds.any()


def fits(sources: Sequence[Tensor], *others: Tensor) -> bool:
    """Whether the kernels take ``sources``, of one dtype, and ``others``: on the CPU, in a dtype that they know."""
    same = all(source.dtype is sources[0].dtype for source in sources)
    return same and all(t.device.type == "cpu" and t.dtype in _BITS for t in (*sources, *others))


def rules_of(keeps: Sequence[Keep | None], size: int) -> Rules | None:
    """Return the selections on tensors of ``size`` elements as rules; None if one is of a kind that has none."""
    kinds, integers = np.zeros((len(keeps), 2), np.int64), np.zeros((len(keeps), 2, 5), np.int64)
    limits = np.zeros((len(keeps), 2), np.float32)
    held: list[Tensor] = []
    for number, keep in enumerate(keeps):
        pair = (keep.outer, keep.inner) if isinstance(keep, KeepBand) else (keep, None)
        for place, single in enumerate(pair):
            if single is None:
                continue
            kind = _rule(single, size, limits[number, place : place + 1], integers[number, place], held)
            if kind is None:
                return None
            kinds[number, place] = kind
    return Rules(kinds, limits, integers, tuple(held))


def _rule(keep: Keep, size: int, limit: np.ndarray, integers: np.ndarray, held: list[Tensor]) -> int | None:
    """Fill in one rule and return its kind."""
    if isinstance(keep, KeepLarge):
        limit[0], integers[coded.LAST_TIE] = keep.threshold, keep.last_tie
        return coded.LARGE
    if isinstance(keep, KeepBelow):
        integers[coded.LIMIT], integers[coded.FIELD] = keep.limit, keep.field.data_ptr()
        held.append(keep.field)
        return coded.BELOW
    if isinstance(keep, KeepDrawn) and size <= _MOST_DRAWS:
        integers[coded.LIMIT] = keep.limit
        integers[coded.LOW], integers[coded.HIGH] = keep.key.words(keep.tensor, 0)
        return coded.DRAWN
    return None


def combine(
    sources: Sequence[Tensor], out: Tensor, pivot: int, scale: float, terms: Sequence[Term], first: int = 0
) -> bool | None:
    """Run `kernels.Combination`; return whether all that was written is finite, None if it does not fit."""
    rules = rules_of([term.keep for term in terms], sources[pivot].numel()) if fits(sources, out) else None
    if rules is None:
        return None
    base, target, factor = _array(sources[pivot]), _array_from(first, out), np.float32(scale)
    weights = [term.coefficient for term in terms]
    chosen = [sources[term.source] for term in terms]
    if rules.trivial and len(terms) <= _FEW:
        missing = _FEW - len(terms)
        others = _addresses([*chosen, *[sources[pivot]] * missing])
        padded = np.array([*weights, *[0.0] * missing], np.float32)
        return _finite(out, first, lambda span: merges.combine_few(base, others, target, padded, factor, span))
    others, shares = _addresses(chosen), np.array(weights, np.float32)
    return _finite(out, first, lambda span: merges.combine(base, others, target, shares, factor, *rules.arrays, span))


def elect(
    sources: Sequence[Tensor],
    out: Tensor,
    pivot: int,
    scale: float,
    normalize: bool,
    terms: Sequence[Term],
    first: int = 0,
) -> bool | None:
    """Run `kernels.Election`; see `combine`."""
    rules = rules_of([term.keep for term in terms], sources[pivot].numel()) if fits(sources, out) else None
    if rules is None:
        return None
    base, target, factor = _array(sources[pivot]), _array_from(first, out), np.float32(scale)
    others = _addresses([sources[term.source] for term in terms])
    weights = np.array([term.coefficient for term in terms], np.float32)
    sizes = np.array([abs(term.weight) for term in terms], np.float32)
    return _finite(
        out,
        first,
        lambda span: merges.elect(base, others, target, weights, sizes, factor, normalize, *rules.arrays, span),
    )


def fuse(
    sources: Sequence[Tensor],
    out: Tensor,
    pivot: int,
    scale: float,
    experts: Sequence[int],
    shares: Sequence[float],
    keep: Keep | None,
    first: int = 0,
) -> bool | None:
    """Run `sce.Fusion`; see `combine`."""
    rules = rules_of([keep], sources[pivot].numel()) if fits(sources, out) else None
    if rules is None:
        return None
    base, target, factor = _array(sources[pivot]), _array_from(first, out), np.float32(scale)
    others, energy = _addresses([sources[source] for source in experts]), np.array(shares, np.float32)
    return _finite(out, first, lambda span: merges.fuse(base, others, target, energy, factor, *rules.arrays, span))


def count_magnitudes(base: Tensor, others: Sequence[Tensor], *, shift: int, first: int, bins: int) -> np.ndarray:
    """Return how many magnitudes have the bits ``first + i`` after a right shift, int64 (bins,).

    The magnitudes are those of one expert's task vector, or the variances over several.
    """
    array, addresses = _array(base), _addresses(others)

    def count(span: Span) -> np.ndarray:
        counts = np.zeros((2, bins), np.int64)
        selections.count_magnitudes(array, addresses, shift, first, counts, span)
        return np.asarray(counts.sum(axis=0))

    return np.asarray(sum(_spread(base.numel(), count)))


def position_of_tie(base: Tensor, others: Sequence[Tensor], limit: float, number: int) -> int:
    """Return the position of the ``number``-th element (from 1) of exactly the magnitude ``limit``."""
    span = np.array([0, base.numel()])
    return int(selections.position_of_tie(_array(base), _addresses(others), np.float32(limit), number, span))


def kept_norms(base: Tensor, other: Tensor, keep: Keep) -> tuple[float, float] | None:
    """Return the L1 norms of a task vector and of what ``keep`` keeps of it, None if it does not fit."""
    rules = rules_of([keep], base.numel())
    if rules is None:
        return None
    array, addresses = _array(base), _addresses([other])

    def norms(span: Span) -> np.ndarray:
        sums = np.zeros(2)
        selections.kept_norms(array, addresses, rules.kinds[0], rules.limits[0], rules.integers[0], sums, span)
        return sums

    total, kept = np.asarray(sum(_spread(base.numel(), norms, piece=_PIECE))).tolist()
    return total, kept


def energies(base: Tensor, others: Sequence[Tensor], keep: Keep | None) -> np.ndarray | None:
    """Return each expert's sum of squares over the elements that ``keep``, told from the variance, keeps: (K,)."""
    rules = rules_of([keep], base.numel())
    if rules is None:
        return None
    array, addresses = _array(base), _addresses(others)

    def squares(span: Span) -> np.ndarray:
        sums = np.zeros(len(others))
        kind, limit = rules.kinds[0, 0], rules.limits[0, 0]
        selections.energies(array, addresses, kind, limit, rules.integers[0, 0], sums, span)
        return sums

    return np.asarray(sum(_spread(base.numel(), squares, piece=_PIECE)))


def _array(tensor: Tensor) -> np.ndarray:
    """Return the flat CPU ``tensor`` as the kernels see it: 16-bit numbers as their bits."""
    return tensor.view(_BITS[tensor.dtype]).numpy()


def _array_from(first: int, tensor: Tensor) -> np.ndarray:
    """Return ``tensor`` as the elements ``first`` and on of an array; the kernels leave alone what lies before them."""
    array = _array(tensor)
    address = array.ctypes.data - first * array.itemsize
    known = {**array.__array_interface__, "data": (address, False), "shape": (first + array.size,), "strides": None}
    return np.asarray(SimpleNamespace(__array_interface__=known))


def _addresses(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.array([tensor.data_ptr() for tensor in tensors], np.uint64)


def _finite(out: Tensor, first: int, work: Callable[[Span], Any]) -> bool:
    return not any(_spread(out.numel(), work, first=first))


def _spread(size: int, work: Callable[[Span], Any], *, piece: int | None = None, first: int = 0) -> list[Any]:
    """Do ``work`` on ``size`` elements from ``first`` on, in as many threads as torch has; return the results in order.

    With ``piece`` every span has that size, so that sums over the results do not depend on the threads.
    """
    threads = torch.get_num_threads()
    step = piece or max(_PIECE, -(-size // (threads * _PIECE)) * _PIECE)
    stop = first + size
    spans = [np.array([start, min(start + step, stop)]) for start in range(first, stop, step)]
    if threads == 1 or len(spans) == 1:
        return [work(span) for span in spans]
    return list(_pool(threads).map(work, spans))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="merge")
