"""The way from tensors and selections to the compiled merges: what fits them, in how many threads."""

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

from evomerge.merging.compiled import decisions, elements, merges, vectors
from evomerge.merging.compiled import rules as coded
from evomerge.merging.keeps import Keep, KeepBand, KeepBelow, KeepDrawn, KeepImportant, KeepLarge, KeepRanked
from evomerge.merging.terms import Term

_BITS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}
_CODES = {torch.float32: elements.FLOAT32, torch.bfloat16: elements.BFLOAT16, torch.float16: elements.FLOAT16}
PIECE = 1 << 17  # elements; threads and sums work in such pieces, so that their number changes nothing
_LEAST, _FEW = 3, 4  # terms that one pass sums up; fewer are filled up with such that weigh nothing
_MOST_DRAWS = 1 << 31  # elements of a tensor that one pair of words draws for
Span = np.ndarray


@dataclass(frozen=True)
class Rules:
    """Selections as the kernels read them, (K, 2): what is kept, and what of that is taken out again."""

    kinds: np.ndarray  # int64 (K, 2)
    limits: np.ndarray  # float32 (K, 2)
    integers: np.ndarray  # int64 (K, 2, 7)
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
    """Whether the kernels take ``sources`` and ``others``: contiguous on the CPU, each in a dtype that they know."""
    return all(t.is_cpu and t.dtype in _BITS and t.is_contiguous() for t in (*sources, *others))


def rules_of(keeps: Sequence[Keep | None], size: int) -> Rules | None:
    """Return the selections on tensors of ``size`` elements as rules; None if one is of a kind that has none."""
    if not any(keeps):
        return _everything(len(keeps))
    kinds, integers = np.zeros((len(keeps), 2), np.int64), np.zeros((len(keeps), 2, 7), np.int64)
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


@lru_cache(maxsize=64)
def _everything(count: int) -> Rules:
    """Return the rules that keep everything of so many task vectors: what most merges ask for, piece after piece."""
    return Rules(
        np.zeros((count, 2), np.int64), np.zeros((count, 2), np.float32), np.zeros((count, 2, 7), np.int64), ()
    )


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
    if isinstance(keep, KeepRanked) and size <= _MOST_DRAWS:
        integers[coded.LOW], integers[coded.HIGH] = keep.key.words(keep.tensor, 0)
        integers[coded.FIELD], integers[coded.TABLE] = keep.field.data_ptr(), keep.limits.data_ptr()
        integers[coded.WIDTH] = keep.limits.numel()
        held += [keep.field, keep.limits]
        return coded.RANKED
    if isinstance(keep, KeepImportant) and keep.grid.axis == "rows" and keep.divergence.device.type == "cpu":
        limit[0], integers[coded.WIDTH] = keep.limit, keep.grid.width
        integers[coded.FIELD] = keep.divergence.data_ptr()
        held.append(keep.divergence)
        return coded.IMPORTANT
    return None


def combine(
    sources: Sequence[Tensor], out: Tensor, pivot: int, scale: float, terms: Sequence[Term], first: int = 0
) -> bool | None:
    """Run `kernels.Combination`; return whether all that was written is finite, None if it does not fit."""
    rules = rules_of([term.keep for term in terms], sources[pivot].numel()) if fits(sources, out) else None
    if rules is None:
        return None
    base, factor = sources[pivot], np.float32(scale)
    weights = [term.coefficient for term in terms]
    chosen = [sources[term.source] for term in terms]
    if rules.trivial and len(terms) <= _FEW and all(source.dtype is base.dtype for source in chosen):
        missing = max(_LEAST - len(terms), 0)
        few = read_by([*chosen, *[base] * missing])
        padded, start, target = (
            np.array([*weights, *[0.0] * missing], np.float32),
            _array(base),
            _array_from(first, out),
        )
        return _finite(out, first, lambda span: merges.combine_few(start, few, target, padded, factor, span))
    others, shares = read_by(chosen), np.array(weights, np.float32)
    pivoted, target = read_by([base])[0], written_to(out, first)
    return _finite(
        out, first, lambda span: merges.combine(pivoted, others, target, shares, factor, *rules.arrays, span)
    )


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
    base, target, factor = read_by([sources[pivot]])[0], written_to(out, first), np.float32(scale)
    others = read_by([sources[term.source] for term in terms])
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
    base, target, factor = read_by([sources[pivot]])[0], written_to(out, first), np.float32(scale)
    others, energy = read_by([sources[source] for source in experts]), np.array(shares, np.float32)
    return _finite(out, first, lambda span: merges.fuse(base, others, target, energy, factor, *rules.arrays, span))


@dataclass(frozen=True)
class Decision:
    """A rule of `elementwise` as the kernels read it.

    Attributes:
        kind: one of `compiled.decisions`.
        table: numbers of each expert, as the rule wants them.
        keeps: what it keeps of each; no entry where it keeps everything of all.
    """

    kind: int
    table: Sequence[Sequence[float]]
    keeps: tuple[Keep | None, ...] = ()


def decide(
    sources: Sequence[Tensor],
    out: Tensor,
    pivot: int,
    scale: float,
    experts: Sequence[int],
    decision: Decision,
    first: int = 0,
) -> bool | None:
    """Run `elementwise.Elementwise`; see `combine`."""
    chosen = [sources[expert] for expert in experts]
    keeps = decision.keeps or (None,) * len(chosen)
    rules = rules_of(keeps, sources[pivot].numel()) if fits([sources[pivot], *chosen], out) else None
    if rules is None:
        return None
    table = np.zeros((len(chosen), 5), np.float32)
    for row, numbers in zip(table, decision.table, strict=True):
        row[: len(numbers)] = numbers
    base, target, factor = read_by([sources[pivot]])[0], written_to(out, first), np.float32(scale)
    others = read_by(chosen)
    return _finite(
        out,
        first,
        lambda span: decisions.decide(decision.kind, base, others, target, table, factor, *rules.arrays, span),
    )


def add_up(base: Tensor, added: Sequence[Tensor], out: Tensor, weights: Sequence[float], first: int = 0) -> bool | None:
    """Run `virtual.Addition`; see `combine`."""
    if not fits([base, *added], out):
        return None
    pivot, target = read_by([base])[0], written_to(out, first)
    others, factors = read_by(added), np.array(weights, np.float32)
    return _finite(out, first, lambda span: vectors.add_up(pivot, others, target, factors, span))


def combine_vectors(
    sources: Sequence[Tensor], out: Tensor, pivot: int, scale: float, experts: Sequence[int], coefficients: Tensor,
    *, by_row: bool, width: int, first: int = 0,
) -> bool | None:  # fmt: skip
    """Run `rows.VectorCombination`; see `combine`."""
    chosen = [sources[expert] for expert in experts]
    if not fits([sources[pivot], *chosen], out, coefficients):
        return None
    base, target, factor = read_by([sources[pivot]])[0], written_to(out, first), np.float32(scale)
    others = read_by(chosen)
    table = coefficients.numpy()
    return _finite(
        out, first, lambda span: vectors.combine_vectors(base, others, target, table, by_row, width, factor, span)
    )


def _array(tensor: Tensor) -> np.ndarray:
    """Return the flat CPU ``tensor`` as the kernels see it: 16-bit numbers as their bits."""
    return tensor.view(_BITS[tensor.dtype]).numpy()


def read_by(tensors: Sequence[Tensor]) -> np.ndarray:
    """Return the addresses of ``tensors`` and the codes of their dtypes: uint64 (K, 2)."""
    return np.array([(tensor.data_ptr(), _CODES[tensor.dtype]) for tensor in tensors], np.uint64)


def written_to(out: Tensor, first: int) -> np.ndarray:
    """Return the same of ``out``, uint64 (2,), as the elements ``first`` and on of what is written."""
    return np.array([out.data_ptr() - first * out.itemsize, _CODES[out.dtype]], np.uint64)


def _array_from(first: int, tensor: Tensor) -> np.ndarray:
    """Return ``tensor`` as the elements ``first`` and on of an array; the kernels leave alone what lies before them."""
    array = _array(tensor)
    address = array.ctypes.data - first * array.itemsize
    known = {**array.__array_interface__, "data": (address, False), "shape": (first + array.size,), "strides": None}
    return np.asarray(SimpleNamespace(__array_interface__=known))


def _finite(out: Tensor, first: int, work: Callable[[Span], Any]) -> bool:
    return not any(spread(out.numel(), work, first=first))


def spread(size: int, work: Callable[[Span], Any], *, piece: int | None = None, first: int = 0) -> list[Any]:
    """Do ``work`` on ``size`` elements from ``first`` on, in as many threads as torch has; return the results in order.

    With ``piece`` every span has that size, so that sums over the results do not depend on the threads.
    """
    threads = torch.get_num_threads()
    step = piece or max(PIECE, -(-size // (threads * PIECE)) * PIECE)
    stop = first + size
    spans = [np.array([start, min(start + step, stop)]) for start in range(first, stop, step)]
    if threads == 1 or len(spans) == 1:
        return [work(span) for span in spans]
    return list(_pool(threads).map(work, spans))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="merge")
