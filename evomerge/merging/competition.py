"""Operators that let task vectors compete element by element: MagMax, Consensus, ComPEFT, PCB and others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import CandidateFailed
from evomerge.merging import cpu_counts
from evomerge.merging.coefficients import base_of, check_size
from evomerge.merging.compiled import decisions
from evomerge.merging.cpu import Decision
from evomerge.merging.elementwise import Elementwise, Rule
from evomerge.merging.keeps import Keep
from evomerge.merging.largest import largest, names_in
from evomerge.merging.maker import Maker
from evomerge.merging.order_statistics import order_statistics, value_of
from evomerge.merging.selection import Selector
from search_spaces.operators import ComPeft, Consensus, LocalizeStitch, MagMax, MergeOperator, Pcb
from search_spaces.recipe import Recipe

_OUTLIERS = 1e-4  # share of elements that PCB cuts off at either end
Competing = MagMax | Consensus | LocalizeStitch | ComPeft | Pcb


@dataclass(frozen=True)
class Strongest:
    """See `MagMax`."""

    weights: tuple[float, ...]

    @property
    def coded(self) -> Decision:
        """See `elementwise.Rule`."""
        return Decision(decisions.STRONGEST, [[weight] for weight in self.weights])

    def merge(self, rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """See `elementwise.Rule`."""
        total = rows[0].mul_(self.weights[0])
        for row, weight in zip(rows[1:], self.weights[1:], strict=True):
            row.mul_(weight)
            torch.where(row.abs() > total.abs(), row, total, out=total)
        return total


@dataclass(frozen=True)
class Agreed:
    """See `Consensus`."""

    weights: tuple[float, ...]
    selectivity: float
    votes: int

    @property
    def coded(self) -> Decision:
        """See `elementwise.Rule`."""
        return Decision(decisions.AGREED, [[weight, self.selectivity, self.votes] for weight in self.weights])

    def merge(self, rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """See `elementwise.Rule`."""
        total = _sum(rows, self.weights)
        count = torch.zeros_like(total)
        for row in rows:
            count.add_(row.abs() > self.selectivity * (total - row).abs())
        return total.mul_(count >= self.votes)


@dataclass(frozen=True)
class Stitched:
    """See `LocalizeStitch`; a keep of none keeps everything, a density of 0 is no term at all."""

    weights: tuple[float, ...]
    keeps: tuple[Keep | None, ...]

    @property
    def coded(self) -> Decision:
        """See `elementwise.Rule`."""
        return Decision(decisions.STITCHED, [[weight] for weight in self.weights], self.keeps)

    def merge(self, rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """See `elementwise.Rule`."""
        masks = [_mask(keep, row, start, stop) for keep, row in zip(self.keeps, rows, strict=True)]
        total = _sum([row.mul_(mask) for row, mask in zip(rows, masks, strict=True)], self.weights)
        return total.div_(torch.stack(masks).sum(0).clamp_(min=1.0))


@dataclass(frozen=True)
class Signs:
    """See `ComPeft`; the weights hold the standard deviations."""

    weights: tuple[float, ...]
    keeps: tuple[Keep | None, ...]

    @property
    def coded(self) -> Decision:
        """See `elementwise.Rule`."""
        return Decision(decisions.SIGNS, [[weight] for weight in self.weights], self.keeps)

    def merge(self, rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """See `elementwise.Rule`."""
        kept = [row * _mask(keep, row, start, stop) for keep, row in zip(self.keeps, rows, strict=True)]
        return _sum([row.sign_() for row in kept], self.weights)


@dataclass(frozen=True)
class Balanced:
    """See `Pcb`: per expert the limits of ``|tau|`` and those of b, between which a share rises from 0 to 1."""

    weights: tuple[float, ...]
    sizes: tuple[tuple[float, float], ...]
    scores: tuple[tuple[float, float], ...]

    @property
    def coded(self) -> Decision:
        """See `elementwise.Rule`."""
        numbers = zip(self.weights, self.sizes, self.scores, strict=True)
        return Decision(decisions.BALANCED, [[weight, *size, *score] for weight, size, score in numbers])

    def merge(self, rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """See `elementwise.Rule`."""
        total, divisor = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
        for row, score, weight, size, ends in zip(
            rows, pcb_scores(rows, self.sizes), self.weights, self.sizes, self.scores, strict=True
        ):
            share = _rise(score.clamp_(*ends), ends)
            divisor.add_(share)
            total.add_(share.mul_(row.abs().clamp_(*size)).mul_(row.sign()), alpha=weight)
        return total.div_(divisor.clamp_(min=1e-12))


def pcb_scores(rows: Sequence[Tensor], sizes: Sequence[tuple[float, float]]) -> list[Tensor]:
    """Return b_i for every expert (see `Pcb`), float32 of the rows' shape."""
    together = torch.stack(list(rows)).sum(0)
    return [
        (_rise(row.abs().clamp_(*ends), ends).square_() * len(rows)).exp_() * torch.tanh(row * together)
        for row, ends in zip(rows, sizes, strict=True)
    ]


def competing(operator: Competing, recipe: Recipe, name: str, selector: Selector) -> Elementwise:
    """Return the kernel that merges tensor ``name``.

    Raises:
        CandidateFailed: a coefficient is beyond the range of float32.
    """
    experts = recipe.experts
    if isinstance(operator, Pcb):
        rule: Rule = _balanced(operator, experts, name, selector)
    elif isinstance(operator, MagMax):
        rule = Strongest(operator.weights)
    elif isinstance(operator, Consensus):
        rule = Agreed(operator.weights, operator.selectivity, operator.votes)
    else:
        experts, rule = _kept(operator, experts, name, selector)
    for weight in operator.weights:
        check_size(weight)
    return Elementwise(base_of(recipe), experts, rule, check_size(operator.scale))


def _kept(
    operator: LocalizeStitch | ComPeft, experts: tuple[int, ...], name: str, selector: Selector
) -> tuple[tuple[int, ...], Rule]:
    shares = zip(experts, operator.weights, operator.densities, strict=True)
    terms = [(expert, weight, density) for expert, weight, density in shares if density > 0.0]
    if not terms:  # nothing is kept of anyone
        return experts[:1], Strongest((0.0,))
    keeps = tuple(largest(selector, expert, name, density, operator.scope) for expert, _, density in terms)
    weights = tuple(weight for _, weight, _ in terms)
    taken = tuple(expert for expert, _, _ in terms)
    if isinstance(operator, LocalizeStitch):
        return taken, Stitched(weights, keeps)
    names = names_in(operator.scope, name, selector)
    spreads = [
        selector.remember(("deviation", expert, names), lambda e=expert: _deviation(selector, e, names))  # type: ignore[misc]
        for expert in taken
    ]
    return taken, Signs(tuple(w * s for w, s in zip(weights, spreads, strict=True)), keeps)


def _deviation(selector: Selector, source: int, names: tuple[str, ...]) -> float:
    count = total = squares = 0.0
    for name in names:
        for _, _, delta in selector.deltas(source, name):
            values = delta.double()
            count, total = count + values.numel(), total + float(values.sum())
            squares += float(values.square().sum())
    return math.sqrt(max(0.0, squares / count - (total / count) ** 2))


def _balanced(operator: Pcb, experts: tuple[int, ...], name: str, selector: Selector) -> Balanced:
    if len(experts) > 80:
        raise CandidateFailed(f"pcb: exp({len(experts)}) is near the end of float32's range; merge 80 experts at most")
    names = names_in(operator.scope, name, selector)
    size = sum(selector.size(each) for each in names)

    def rows() -> Iterator[list[Tensor]]:
        for each in names:
            for parts in zip(*(selector.deltas(expert, each) for expert in experts), strict=True):
                yield [delta for _, _, delta in parts]

    ends = [int(size * _OUTLIERS), max(0, int(size * (1 - _OUTLIERS) - 1))]
    sizes = tuple((low, high) for low, high in (selector.magnitudes(e, names, ends) for e in experts))
    place = min(size - 1, int(size * (1.0 - operator.ratio)))

    def limits() -> tuple[tuple[float, float], ...]:
        if all(selector.compiled(experts, each) for each in names):
            return score_limits(selector, experts, names, sizes, place)
        return _limits(lambda i: (pcb_scores(r, sizes)[i] for r in rows()), len(experts), [place, size - 1])

    scores = selector.remember(("pcb scores", experts, names, operator.ratio), limits)
    return Balanced(operator.weights, sizes, scores)


def score_limits(
    selector: Selector,
    experts: tuple[int, ...],
    names: tuple[str, ...],
    sizes: tuple[tuple[float, float], ...],
    rank: int,
) -> tuple[tuple[float, float], ...]:
    """Return the scores of this ``rank`` (0: the smallest) and the largest ones: the upper halves of their keys are
    counted once, the lower ones in the bins that hold the rank."""

    def counts(bins: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        parts = [cpu_counts.count_scores(*selector.tensors(experts, name), sizes, bins) for name in names]
        return np.sum([part[0] for part in parts], axis=0), np.max([part[1] for part in parts], axis=0)

    upper, most = selector.remember(("pcb counts", experts, names), lambda: counts([-1] * len(experts)))
    ends = np.cumsum(upper, axis=1)
    bins = [int(np.searchsorted(row, rank, side="right")) for row in ends]
    lower, _ = counts(bins)
    found = []
    for row, part, place, largest_key in zip(ends, lower, bins, most, strict=True):
        within = rank - int(row[place - 1] if place else 0)
        low = int(np.searchsorted(np.cumsum(part), within, side="right"))
        found.append((value_of(place << 16 | low), value_of(int(largest_key))))
    return tuple(found)


def _limits(
    values: Callable[[int], Iterator[Tensor]], count: int, ranks: Sequence[int]
) -> tuple[tuple[float, float], ...]:
    found = [order_statistics(lambda i=i: values(i), ranks) for i in range(count)]  # type: ignore[misc]
    return tuple((low, high) for low, high in found)


def _rise(values: Tensor, ends: tuple[float, float]) -> Tensor:
    """Map ``ends`` to 0 and 1, in place; where they are equal, everything to 0."""
    span = ends[1] - ends[0]
    return values.sub_(ends[0]).div_(span) if span > 0.0 else values.zero_()


def _sum(rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(rows[0])
    for row, weight in zip(rows, weights, strict=True):
        total.add_(row, alpha=weight)
    return total


def _mask(keep: Keep | None, row: Tensor, start: int, stop: int) -> Tensor:
    out = torch.ones_like(row)
    return out if keep is None else keep.mask(start, stop, row, out)


MAKERS: dict[type[MergeOperator], Maker] = dict.fromkeys(get_args(Competing), competing)
