"""Operators that decide element by element: one kernel, and a rule for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from evomerge.merging import cpu, cpu_counts
from evomerge.merging.coefficients import base_of, check_size
from evomerge.merging.compiled import decisions
from evomerge.merging.cpu import Decision
from evomerge.merging.kernels import Scratch, chunks, finish, float32, part
from evomerge.merging.maker import Maker
from evomerge.merging.selection import Selector
from search_spaces.operators import MergeOperator, NearSwap, Ram, RamPlus
from search_spaces.recipe import Recipe


class Rule(Protocol):
    """What becomes of the task vectors in some elements."""

    @property
    def coded(self) -> Decision | None:
        """The rule for the compiled kernel; none where it has no such form."""
        ...

    def merge(self, rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """Return the merged task vector, float32 (stop - start,), of ``rows``, one per expert: they are overwritten."""
        ...


@dataclass(frozen=True)
class Elementwise:
    """``theta_p + scale * rule(theta_1 - theta_p, ...)``, the rule elementwise.

    Attributes:
        pivot: position of the base.
        sources: positions of the experts.
    """

    pivot: int
    sources: tuple[int, ...]
    rule: Rule
    scale: float = 1.0

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch, first: int = 0) -> None:
        """Write elements ``first`` and on of the merge of flat ``sources`` (n,), any float dtypes, to ``out``."""
        coded = self.rule.coded
        if coded is not None and scratch.noted(
            cpu.decide(sources, out, self.pivot, self.scale, self.sources, coded, first)
        ):
            return
        for start, stop, target in chunks(out, scratch, first):
            size = stop - start
            pivot = float32(part(sources[self.pivot], start, stop), scratch.row(0, size))
            rows = [scratch.row(1 + number, size) for number in range(len(self.sources))]
            for source, row in zip(self.sources, rows, strict=True):
                torch.sub(float32(part(sources[source], start, stop), row), pivot, out=row)
            bad = not_finite(rows)
            total = self.rule.merge(rows, start, stop)
            finish(total.mul_(self.scale).add_(bad), pivot, 1.0, target)
            scratch.watch(target)


def not_finite(rows: Sequence[Tensor]) -> Tensor:
    """Return NaN where one of ``rows`` is not finite and 0 elsewhere: rules compare and clip, which would hide it."""
    return torch.stack(list(rows)).mul_(0.0).sum(0)


@dataclass(frozen=True)
class Near:
    """No element moves further than ``reach``."""

    reach: float

    @property
    def coded(self) -> Decision:
        """See `Rule`."""
        return Decision(decisions.NEAR, [[self.reach]])

    def merge(self, rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """See `Rule`."""
        return rows[0].clamp_(-self.reach, self.reach)


@dataclass(frozen=True)
class Touched:
    """The mean of the task vectors that moved an element; one that is alone there is multiplied by its factor."""

    epsilon: float
    factors: tuple[float, ...]

    @property
    def coded(self) -> Decision:
        """See `Rule`."""
        return Decision(decisions.TOUCHED, [[self.epsilon, factor] for factor in self.factors])

    def merge(self, rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """See `Rule`."""
        moved = [(row.abs() > self.epsilon).float() for row in rows]
        count = torch.stack(moved).sum(0)
        alone, total = (count == 1.0).float(), torch.zeros_like(count)
        for row, mask, factor in zip(rows, moved, self.factors, strict=True):
            total.add_(row.mul_(mask).mul_(1.0 + (factor - 1.0) * alone))
        return total.div_(count.clamp_(min=1.0))


def kernel(operator: NearSwap | Ram | RamPlus, recipe: Recipe, name: str, selector: Selector) -> Elementwise:
    """Return the kernel that merges tensor ``name``."""
    base, experts = base_of(recipe), recipe.experts
    if isinstance(operator, NearSwap):
        return Elementwise(base, (operator.source,), Near(check_size(operator.reach)))
    factors = (1.0,) * len(experts)
    if isinstance(operator, RamPlus):
        what = ("moved", experts, name, operator.epsilon)
        ratios = selector.remember(what, lambda: shared_ratios(selector, experts, name, operator.epsilon))
        factors = tuple(1.0 + operator.boost * min(ratio, operator.boost_cap) for ratio in ratios)
    return Elementwise(base, experts, Touched(operator.epsilon, tuple(map(check_size, factors))))


def shared_ratios(selector: Selector, experts: tuple[int, ...], name: str, epsilon: float) -> tuple[float, ...]:
    """Return for every expert the number of moved elements that others moved, too, over that of the other moved ones.

    It is infinite where there are shared elements only, and 0 where there are none.
    """
    base, others = selector.tensors(experts, name)
    if cpu.fits([base, *others]):
        shared, alone = cpu_counts.count_moved(base, others, epsilon).astype(float)
    else:
        shared, alone = _moved(selector, experts, name, epsilon)
    with np.errstate(divide="ignore"):
        ratios = np.where(shared == 0.0, 0.0, shared / np.where(shared == 0.0, 1.0, alone))
    return tuple(ratios.tolist())


def _moved(selector: Selector, experts: tuple[int, ...], name: str, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how many elements an expert and others moved, and it alone: float64 (K,) each."""
    shared, alone = np.zeros(len(experts)), np.zeros(len(experts))
    for parts in zip(*(selector.deltas(expert, name) for expert in experts), strict=True):
        moved = torch.stack([delta.abs() > epsilon for _, _, delta in parts])
        count = moved.sum(0)
        shared += (moved & (count > 1)).sum(1).numpy()
        alone += (moved & (count == 1)).sum(1).numpy()
    return shared, alone


MAKERS: dict[type[MergeOperator], Maker] = dict.fromkeys((NearSwap, Ram, RamPlus), kernel)
