"""Merging with an operator that another package brings: whole tensors in float32, checked before they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evaluators.errors import one_line
from evomerge.errors import CandidateFailed
from evomerge.merging.coefficients import Kernel
from evomerge.merging.kernels import Scratch
from evomerge.merging.selection import Selector
from search_spaces.operators import OperatorPlugIn
from search_spaces.recipe import Recipe


@dataclass(frozen=True)
class Plugged:
    """``theta_0 + scale (merged - theta_0)``; scale is 1 unless a block says otherwise.

    Attributes:
        shape: of the tensor.
        base: position among the sources; None without one.
        experts: positions of the experts.
    """

    operator: OperatorPlugIn
    name: str
    shape: tuple[int, ...]
    base: int | None
    experts: tuple[int, ...]
    scale: float = 1.0
    _kept: list[Tensor] = field(default_factory=list, compare=False, repr=False)

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch, first: int = 0) -> None:
        """Write elements ``first`` and on of the merge of flat ``sources`` (n,), any float dtypes, to ``out``.

        Who asks for pieces one after another, from the first to the last, has the tensor merged once.

        Raises:
            CandidateFailed: the operator raises, or returns something else than a tensor of this shape.
        """
        whole = self._kept.pop() if first and self._kept else self._whole(sources, out.device)
        stop = first + out.numel()
        out.copy_(whole[first:stop])
        scratch.watch(out)
        if stop < whole.numel():
            self._kept[:] = [whole]

    def _whole(self, sources: Sequence[Tensor], device: torch.device) -> Tensor:
        """(n,) the merge of all elements."""

        def copy(source: int) -> Tensor:  # what a plug-in writes into it must not reach the mapped file
            return sources[source].to(device=device, dtype=torch.float32, copy=True).view(self.shape)

        base = None if self.base is None else copy(self.base)
        merged = self._merged(base, [copy(expert) for expert in self.experts])
        if self.scale != 1.0 and self.base is not None:
            start = copy(self.base)
            merged = start + self.scale * (merged.float() - start)
        return merged.reshape(-1)

    def _merged(self, base: Tensor | None, experts: Sequence[Tensor]) -> Tensor:
        where = f"operator {self.operator.kind}, tensor {self.name!r}"
        try:
            merged: object = self.operator.merge(self.name, base, experts)
        except Exception as error:  # whatever it raises
            raise CandidateFailed(f"{where}: {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(merged, Tensor) or tuple(merged.shape) != self.shape:
            got = list(merged.shape) if isinstance(merged, Tensor) else type(merged).__name__
            raise CandidateFailed(f"{where}: expected a tensor of shape {list(self.shape)}, got {got}")
        return merged


def make(operator: OperatorPlugIn, recipe: Recipe, name: str, selector: Selector) -> Kernel:
    """Return the kernel that merges tensor ``name``."""
    shape = tuple(selector.shapes.get(name, (selector.size(name),)))
    return Plugged(operator, name, shape, recipe.base, recipe.experts)
