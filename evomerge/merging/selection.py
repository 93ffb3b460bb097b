"""Which elements of a task vector an operator keeps.

`Selector` answers per expert and tensor, in three ways that give the same elements whatever the chunk: ranks or
draws remembered for small tensors, an exact threshold found by histograms for large ones, draws made again for
large ones.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import BadRecipe, NotEnoughRoom
from evomerge.merging import cpu, cpu_counts
from evomerge.merging.adapter import Factors
from evomerge.merging.keeps import Keep, KeepBand, KeepBelow, KeepDrawn, KeepLarge, KeepRanked
from evomerge.merging.masks import MaskKey, draws, threshold
from evomerge.merging.prepared import prepared
from evomerge.merging.ranked import KeepByRank, rank_limits, row_ranks
from evomerge.merging.variance import variance

SMALL = 1 << 16  # elements up to which per-element ranks and draws are remembered
MOST_RANKS = 1 << 16  # in a row
CACHE_BYTES = 96 << 20
_CHUNK = 1 << 16
_LOW_BITS = 15
Subject = int | tuple[int, ...]  # an expert, or several: the variance over them takes the task vector's place
T = TypeVar("T")


@dataclass(frozen=True)
class _Draws:
    """The draws of a small tensor, with what the L1 norm of any subset is looked up in."""

    field: Tensor  # int32 (n,)
    ascending: np.ndarray  # int32 (n,)
    norms: np.ndarray  # float64 (n + 1,): L1 norm of the elements with the smallest draws


def no_factors(expert: int, name: str) -> Factors | None:
    """Refuse to give factors.

    Raises:
        BadRecipe: always.
    """
    raise BadRecipe("operators on the factors of LoRA adapters need adapters as experts")


@dataclass
class Selector:
    """Selections on the task vectors of one base; ``sources[i](name)`` gives the flat tensor of source i."""

    sources: Sequence[Callable[[str], Tensor]]
    base: int
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of tensors that are not one row
    cache_bytes: int | None = None  # most to remember; none: CACHE_BYTES
    factors: Callable[[int, str], Factors | None] = no_factors  # of an expert's task vector, if it is an adapter
    _cache: OrderedDict[tuple[object, ...], tuple[object, int]] = field(default_factory=OrderedDict)
    _cached_bytes: int = 0

    def largest(self, expert: int, name: str, density: float) -> Keep | None:
        """Return the ``max(1, int(density n))`` largest elements, the first of equals; none for all of them."""
        size = self.size(name)
        count = max(1, int(density * size))
        if density >= 1.0 or count >= size:
            return None
        return self._top(expert, name, count)

    def size(self, name: str) -> int:
        """Return the number of elements of tensor ``name``."""
        return self.sources[self.base](name).numel()

    def _top(self, expert: Subject, name: str, count: int) -> Keep:
        if self.size(name) <= SMALL:
            ranks = self._remember(("ranks", expert, name), lambda: self._ranks(expert, name))
            return KeepBelow(ranks, count)
        return self._remember(("largest", expert, name, count), lambda: self._threshold(expert, name, count))

    def band(self, expert: int, name: str, skipped: int, count: int) -> Keep | None:
        """Return the ``count`` largest elements after the ``skipped`` largest; none for all of them."""
        inner = self._top(expert, name, skipped) if skipped else None
        outer = self._top(expert, name, skipped + count) if skipped + count < self.size(name) else None
        return KeepBand(outer, inner) if inner is not None else outer

    def drawn(self, expert: int, name: str, density: float, key: MaskKey) -> Keep | None:
        """Return every element with probability ``density``, in (0, 1]; none for all of them."""
        limit = threshold(density)
        if density >= 1.0 or limit >= 2**31:
            return None
        if self.sources[self.base](name).numel() <= SMALL:
            return KeepBelow(self._draws(expert, name, key).field, limit)
        return KeepDrawn(key, name, limit)

    def varied(self, experts: tuple[int, ...], name: str, share: float) -> tuple[int, Keep | None]:
        """Return how many elements of m whose variance over ``experts`` is not zero are the ``int(share m)`` most
        varied, and which they are, told from the variance; none for all elements.
        """
        if share >= 1.0:
            return self.size(name), None
        count = int(self._remember(("varying", experts, name), lambda: self._varying(experts, name)) * share)
        return count, self._top(experts, name, count) if 0 < count < self.size(name) else None

    def energies(self, experts: tuple[int, ...], name: str, count: int, keep: Keep | None) -> tuple[float, ...]:
        """Return the sum of squares of the kept elements of every expert; ``count`` names what `varied` gave."""
        what = ("energies", experts, name, count, keep is None)
        return self._remember(what, lambda: self._energies(experts, name, keep))

    def _varying(self, experts: tuple[int, ...], name: str) -> int:
        if self.compiled(experts, name):
            base, others = self.tensors(experts, name)
            return base.numel() - int(cpu_counts.count_magnitudes(base, others, shift=0, first=0, bins=1)[0])
        return sum(int(torch.count_nonzero(values)) for _, _, values in self._deltas(experts, name))

    def _energies(self, experts: tuple[int, ...], name: str, keep: Keep | None) -> tuple[float, ...]:
        totals = cpu_counts.energies(*self.tensors(experts, name), keep) if self.compiled(experts, name) else None
        if totals is not None:
            return tuple(totals.tolist())
        totals = np.zeros(len(experts))
        for parts in zip(*(self._deltas(expert, name) for expert in experts), strict=True):
            rows = [delta for _, _, delta in parts]
            if keep is not None:
                start, stop, _ = parts[0]
                mask = keep.mask(start, stop, variance(rows), torch.empty_like(rows[0]))
                rows = [row * mask for row in rows]
            totals += [float(row.double().square().sum()) for row in rows]
        return tuple(totals.tolist())

    def drawn_by_rank(
        self, expert: int, name: str, density: float, spread: float, key: MaskKey, *, content: str | None = None
    ) -> Keep | None:
        """Return every element with a probability that grows with its rank in its row: see `rank_limits`.

        ``content`` names base and expert: ranks of large tensors that are asked for again are kept under it on disk.
        """
        if density >= 1.0:
            return None
        width = (self.shapes.get(name) or (self.size(name),))[-1]
        limits = rank_limits(density, spread, width)
        if self.size(name) <= SMALL:
            ranks = self._remember(("row ranks", expert, name), lambda: self._ranked(expert, name, width))
            return KeepRanked(key, name, ranks, limits)
        if width <= MOST_RANKS and self.compiled(expert, name):
            return KeepRanked(key, name, self._kept_ranks(expert, name, width, content), limits)
        return KeepByRank(
            lambda a, b: self._ranks_between(expert, name, width, a, b), lambda a, b: draws(key, name, a, b), limits
        )

    def _kept_ranks(self, expert: int, name: str, width: int, content: str | None) -> Tensor:
        if content is None or self._is_new("ranks", expert, name, content):
            return self._ranked(expert, name, width)
        try:
            kept = prepared("ranks", content, name, lambda: self._ranked(expert, name, width).view(torch.int16))
        except NotEnoughRoom:
            return self._ranked(expert, name, width)  # costs time, not correctness
        return kept.view(torch.uint16)

    def l1_rescale(self, expert: int, name: str, key: MaskKey, keep: Keep) -> float:
        """Return the factor that gives the kept elements the L1 norm of all of them; 1 if none is left."""
        if isinstance(keep, KeepBelow):
            table = self._draws(expert, name, key)
            kept = float(table.norms[np.searchsorted(table.ascending, keep.limit)])
            return _ratio(float(table.norms[-1]), kept)
        return self._remember(("l1", expert, name, key, keep), lambda: self._l1_by_chunks(expert, name, keep))

    def l1_ratio(self, expert: int, name: str, keep: Keep, what: tuple[object, ...]) -> float:
        """Return the same for any selection; ``what`` names it, so that the answer can be remembered."""
        return self._remember(("l1", expert, name, *what), lambda: self._l1_by_chunks(expert, name, keep))

    def cosine(self, first: int, second: int, name: str) -> float:
        """Return the cosine between two whole tensors, 0 when the norm of one is below 1e-8."""
        return self._remember(("cosine", first, second, name), lambda: self._cosine(first, second, name))

    def products(self, positions: tuple[int, ...], name: str) -> np.ndarray:
        """Return the inner products of these sources' task vectors, the base's being itself: float64 (K, K)."""
        return self._remember(("products", positions, name), lambda: self._products(positions, name))

    def deltas(self, expert: int, name: str) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the task vector of an expert piece by piece: start, stop and float32 (stop - start,)."""
        return self._deltas(expert, name)

    def remember(self, what: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return what is remembered under ``what``, or make it."""
        return self._remember(what, make)

    def _products(self, positions: tuple[int, ...], name: str) -> np.ndarray:
        total = np.zeros((len(positions), len(positions)))
        for parts in zip(*(self._deltas(position, name) for position in positions), strict=True):
            start, stop, _ = parts[0]
            own = self.sources[self.base](name)[start:stop]
            deltas = zip(positions, parts, strict=True)
            rows = torch.stack([(own if position == self.base else part[2]).double() for position, part in deltas])
            total += (rows @ rows.T).numpy()
        return total

    def _deltas(self, expert: Subject, name: str) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the task vector of an expert piece by piece, or of several experts the variance over them."""
        if isinstance(expert, tuple):
            for parts in zip(*(self._deltas(each, name) for each in expert), strict=True):
                yield parts[0][0], parts[0][1], variance([delta for _, _, delta in parts])
            return
        base, other = self.sources[self.base](name), self.sources[expert](name)
        for start in range(0, base.numel(), _CHUNK):
            stop = min(start + _CHUNK, base.numel())
            yield start, stop, other[start:stop].float() - base[start:stop].float()

    def tensors(self, expert: Subject, name: str) -> tuple[Tensor, list[Tensor]]:
        """Return the base's tensor and those of the experts."""
        experts = expert if isinstance(expert, tuple) else (expert,)
        return self.sources[self.base](name), [self.sources[each](name) for each in experts]

    def compiled(self, expert: Subject, name: str) -> bool:
        """Whether the compiled kernels take what these questions are about."""
        base, others = self.tensors(expert, name)
        return cpu.fits([base, *others])

    def _ranks(self, expert: Subject, name: str) -> Tensor:
        ((_, size, delta),) = self._deltas(expert, name)
        ranks = torch.empty(size, dtype=torch.int32)
        ranks[torch.argsort(delta.abs(), descending=True, stable=True)] = torch.arange(size, dtype=torch.int32)
        return ranks

    def _ranked(self, expert: int, name: str, width: int) -> Tensor:
        """Return the rank of every element within its row: uint16 (n,)."""
        if self.compiled(expert, name):
            base, (other,) = self.tensors(expert, name)
            return cpu_counts.rank_rows(base, other, width)
        ranks = self._ranks_between(expert, name, width, 0, self.size(name))
        return ranks.to(torch.uint16)

    def _ranks_between(self, expert: int, name: str, width: int, start: int, stop: int) -> Tensor:
        """Rank the rows that elements ``start`` to ``stop`` lie in: whole rows, whatever the chunk."""
        first, last = start // width * width, -(-stop // width) * width
        base, other = self.sources[self.base](name), self.sources[expert](name)
        ranks = row_ranks(other[first:last].float() - base[first:last].float(), width)
        return ranks[start - first : stop - first]

    def _draws(self, expert: int, name: str, key: MaskKey) -> _Draws:
        return self._remember(("draws", expert, name, key), lambda: self._make_draws(expert, name, key))

    def _make_draws(self, expert: int, name: str, key: MaskKey) -> _Draws:
        ((_, size, delta),) = self._deltas(expert, name)
        values = draws(key, name, 0, size)
        ascending, order = torch.sort(values)
        norms = np.concatenate([[0.0], np.cumsum(delta.abs().double()[order].numpy())])
        return _Draws(values, ascending.numpy(), norms)

    def _l1_by_chunks(self, expert: int, name: str, keep: Keep) -> float:
        if self.compiled(expert, name):
            base, (other,) = self.tensors(expert, name)
            norms = cpu_counts.kept_norms(base, other, keep)
            if norms is not None:
                return _ratio(*norms)
        total = kept = 0.0
        for start, stop, delta in self._deltas(expert, name):
            mask = keep.mask(start, stop, delta, torch.empty_like(delta))
            delta.abs_()
            total += float(delta.double().sum())
            kept += float(delta.mul_(mask).double().sum())
        return _ratio(total, kept)

    def _cosine(self, first: int, second: int, name: str) -> float:
        dot = one = two = 0.0
        a, b = self.sources[first](name), self.sources[second](name)
        for start in range(0, a.numel(), _CHUNK):
            x, y = a[start : start + _CHUNK].double(), b[start : start + _CHUNK].double()
            dot, one, two = dot + float(x.dot(y)), one + float(x.dot(x)), two + float(y.dot(y))
        norms = [norm if norm > 1e-8 else 1.0 for norm in (math.sqrt(one), math.sqrt(two))]
        return dot / (norms[0] * norms[1])

    def _threshold(self, expert: Subject, name: str, count: int) -> KeepLarge:
        """Find the ``count``-th largest magnitude exactly: by a histogram of its upper bits, then by its lower ones.

        The first one of a tensor without a histogram, if it can be guessed: a merge that is made once needs no more.
        """
        guessed = self._guessed(expert, name, count)
        if guessed is not None:
            limit, place = guessed
        elif self.compiled(expert, name):
            first, held, wanted = self._bin(expert, (name,), count)
            last = first + (1 << _LOW_BITS) - 1
            limit, place = cpu_counts.pick(*self.tensors(expert, name), first, last, held=held, wanted=wanted)
        else:
            limit, ties = self._nth_largest(expert, (name,), count)
            place = self._position_of_tie(expert, name, limit, ties)
        if limit == 0.0:
            return KeepLarge(0.0, -1)  # the elements left are zero: kept or dropped, the sum is the same
        return KeepLarge(limit, place)

    def _guessed(self, expert: Subject, name: str, count: int) -> tuple[float, int] | None:
        if isinstance(expert, tuple) or not self.compiled(expert, name) or not self._is_new("threshold", expert, name):
            return None
        base, (other,) = self.tensors(expert, name)
        return cpu_counts.guess(base, other, count) if base.itemsize == other.itemsize == 2 else None

    def magnitudes(self, expert: int, names: tuple[str, ...], ranks: Sequence[int]) -> tuple[float, ...]:
        """Return the magnitudes of these ``ranks`` (0: the smallest) among the task vector's elements in ``names``."""
        size = sum(self.size(name) for name in names)

        def find() -> tuple[float, ...]:
            return tuple(self._nth_largest(expert, names, size - rank)[0] for rank in ranks)

        return self._remember(("magnitudes", expert, names, tuple(ranks)), find)

    def _nth_largest(self, expert: Subject, names: tuple[str, ...], count: int) -> tuple[float, int]:
        """Return the ``count``-th largest magnitude of all elements in ``names``, and its number among its equals."""
        first, _, wanted = self._bin(expert, names, count)
        bins = 1 << _LOW_BITS
        counts = sum(self._count(expert, name, shift=0, first=first, bins=bins) for name in names)
        lower, ties = cpu_counts.from_the_top(np.asarray(counts), wanted)
        return cpu_counts.as_float(first + lower), ties

    def _bin(self, expert: Subject, names: tuple[str, ...], count: int) -> tuple[int, int, int]:
        """Return the first bits of the bin that holds the ``count``-th largest magnitude, how many the bin holds, and
        its number among them."""
        used, sizes = self._histogram(expert, names)
        place, wanted = cpu_counts.from_the_top(sizes, count)
        return int(used[place]) << _LOW_BITS, int(sizes[place]), wanted

    def _histogram(self, expert: Subject, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return the upper bits that elements in ``names`` have, ascending, and how many have them."""
        if len(names) == 1:
            return self._used_bins(expert, names[0])
        total = np.zeros(1 << (31 - _LOW_BITS), np.int64)
        for name in names:
            bins, sizes = self._used_bins(expert, name)
            total[bins] += sizes
        found = np.flatnonzero(total)
        return found, total[found]

    def _used_bins(self, expert: Subject, name: str) -> tuple[np.ndarray, np.ndarray]:
        def count() -> tuple[np.ndarray, np.ndarray]:
            counts = self._count(expert, name, shift=_LOW_BITS, first=0, bins=1 << (31 - _LOW_BITS))
            bins = np.flatnonzero(counts).astype(np.int32)
            return bins, counts[bins]

        return self._remember(("histogram", expert, name), count)

    def _count(self, expert: Subject, name: str, *, shift: int, first: int, bins: int) -> np.ndarray:
        """Return how many magnitudes have the bits ``first + i`` after a right shift: int64 (bins,)."""
        if self.compiled(expert, name):
            return cpu_counts.count_magnitudes(*self.tensors(expert, name), shift=shift, first=first, bins=bins)
        counts = np.zeros(bins + 2, dtype=np.int64)
        for _, _, delta in self._deltas(expert, name):
            places = (_magnitude_bits(delta) >> shift).clamp_(first - 1, first + bins).sub_(first - 1)
            counts += torch.bincount(places, minlength=counts.size).numpy()
        return counts[1:-1]

    def _position_of_tie(self, expert: Subject, name: str, size: float, number: int) -> int:
        """Return the position of the ``number``-th element (from 1) of exactly this magnitude."""
        for start, _, delta in self._deltas(expert, name):
            equal = delta.abs_().eq_(size)
            here = int(equal.sum())
            if here >= number:
                return start + int(equal.nonzero()[number - 1])
            number -= here
        raise AssertionError("the histogram counted more ties than there are")

    def _is_new(self, *asked: object) -> bool:
        """Return whether ``asked`` is asked for the first time, as far as is remembered."""
        new = ("asked", *asked) not in self._cache
        self._remember(("asked", *asked), lambda: True)
        return new

    def _remember(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key][0]  # type: ignore[return-value]
        value = make()
        size = 200 + _bytes_of(value)
        self._cache[key] = (value, size)
        self._cached_bytes += size
        most = CACHE_BYTES if self.cache_bytes is None else self.cache_bytes
        while self._cached_bytes > most:
            _, (_, freed) = self._cache.popitem(last=False)
            self._cached_bytes -= freed
        return value


def _magnitude_bits(delta: Tensor) -> Tensor:
    """Return the bits of ``|delta|`` as int32 (n,): in the order of the magnitudes."""
    return delta.view(torch.int32) & 0x7FFFFFFF


def _ratio(total: float, kept: float) -> float:
    return total / kept if kept > 0.0 and math.isfinite(total) else 1.0


def _bytes_of(value: object) -> int:
    parts = value if isinstance(value, tuple) else vars(value).values() if isinstance(value, _Draws) else (value,)
    return sum(part.nbytes for part in parts if isinstance(part, Tensor | np.ndarray))
