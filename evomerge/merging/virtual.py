"""Virtual task vectors: what an operator that is linear in its weights makes of the experts, prepared once, on disk.

A candidate is then ``theta_0 + sum_i w_i E_i``: it costs what task arithmetic does, whatever the operator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import CandidateFailed
from evomerge.merging import cpu, spectral
from evomerge.merging.coefficients import Kernel, base_of, check_size, effective
from evomerge.merging.kernels import Combination, Scratch, chunks, finish, float32, part
from evomerge.merging.largest import largest
from evomerge.merging.maker import Maker
from evomerge.merging.prepared import prepared
from evomerge.merging.selection import Selector
from evomerge.merging.sources import content
from evomerge.merging.terms import Term
from search_spaces.canonical import digest
from search_spaces.operators import Doge, IsoC, IsoCts, MergeOperator, Opcm, Operator, SubspaceBoosting, Swudi, TsvM
from search_spaces.recipe import Recipe
from search_spaces.tensors import in_stack

_FORMAT = 1  # of what is prepared: a change makes what lies in caches obsolete
Weighted = TsvM | Swudi | Doge
Spectral = Weighted | IsoC | IsoCts | SubspaceBoosting | Opcm  # those that have no weights are one vector


@dataclass(frozen=True)
class Addition:
    """``theta_p + scale * sum_i w_i E_i``.

    Attributes:
        pivot: position of the base.
        vectors: E, (count, n), any float dtype.
    """

    pivot: int
    vectors: Tensor
    weights: tuple[float, ...]
    scale: float = 1.0

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch, first: int = 0) -> None:
        """Write elements ``first`` and on of the sum to ``out``; of ``sources`` only the base is read."""
        weights = [weight * self.scale for weight in self.weights]
        if scratch.noted(cpu.add_up(sources[self.pivot], list(self.vectors), out, weights, first)):
            return
        for start, stop, target in chunks(out, scratch, first):
            size = stop - start
            pivot = float32(part(sources[self.pivot], start, stop), scratch.row(0, size))
            total = scratch.row(1, size).zero_()
            for vector, weight in zip(self.vectors, self.weights, strict=True):
                total.add_(float32(part(vector, start, stop), scratch.row(2, size)), alpha=weight * self.scale)
            finish(total, pivot, 1.0, target)
            scratch.watch(target)


def added(operator: Spectral, recipe: Recipe, name: str, selector: Selector) -> Kernel:
    """Return the kernel that merges tensor ``name``, preparing its virtual task vectors if no one has.

    Raises:
        CandidateFailed: a coefficient is beyond the range of float32.
        NotEnoughRoom: they cannot be written.
    """
    experts = recipe.experts
    weights = operator.weights if isinstance(operator, Weighted) else (1.0,) * len(experts)
    shape = selector.shapes[name]
    scale = operator.scale * (_opcm_scale(operator, recipe, selector) if isinstance(operator, Opcm) else 1.0)
    if not in_stack(name) or len(shape) != 2:
        divisor = 1 if isinstance(operator, Opcm) else len(experts)
        shares = [weight * scale / divisor for weight in weights]
        terms = [Term(source, share) for source, share in zip(experts, shares, strict=True)]
        return Combination(base_of(recipe), 1.0, effective(terms))
    vectors = _prepared(operator, recipe, name, selector)
    used = weights if isinstance(operator, Weighted) else (1.0,)
    for weight in used:
        check_size(weight * scale)
    return Addition(base_of(recipe), vectors, used, scale)


def _prepared(operator: Spectral, recipe: Recipe, name: str, selector: Selector) -> Tensor:
    key = selector.remember(("prepared", parameters_of(operator), recipe.sources), lambda: key_of(operator, recipe))
    return prepared("virtual", key, name, lambda: _vectors(operator, recipe, name, selector))


def _opcm_scale(operator: Opcm, recipe: Recipe, selector: Selector) -> float:
    """Return the mean norm of the experts' task vectors over that of what OPCM makes of them, of the whole model."""
    what = ("opcm", operator.energy, recipe.sources)
    return selector.remember(what, lambda: _mean_over_merged(operator, recipe, selector))


def _mean_over_merged(operator: Opcm, recipe: Recipe, selector: Selector) -> float:
    squares, merged = np.zeros(len(recipe.experts)), 0.0
    for name, shape in selector.shapes.items():
        products = selector.products(recipe.experts, name)
        squares += products.diagonal()
        if in_stack(name) and len(shape) == 2:
            merged += float(_prepared(operator, recipe, name, selector).double().square().sum())
        else:
            merged += float(products.sum())
    return float(np.sqrt(squares).mean()) / math.sqrt(merged) if merged > 0.0 else 1.0


def task_matrices(operator: Operator, recipe: Recipe, name: str, selector: Selector) -> list[Tensor]:
    """Return the experts' task vectors of one matrix, float64 (m, d) each.

    Raises:
        CandidateFailed: a source holds NaN or infinite values.
    """
    base = selector.sources[selector.base](name).double()
    taus = [(selector.sources[i](name).double() - base).view(selector.shapes[name]) for i in recipe.experts]
    if not all(bool(torch.isfinite(tau).all()) for tau in taus):
        raise CandidateFailed(f"{operator.kind}: a source has NaN or infinite values in tensor {name!r}")
    return taus


def as_kept(vectors: Sequence[Tensor], name: str, selector: Selector) -> Tensor:
    """Return ``vectors`` as they are kept on disk, (count, n): float32 for float32 sources, else bfloat16."""
    exact = selector.sources[selector.base](name).dtype is torch.float32
    return torch.stack([vector.reshape(-1).to(torch.float32 if exact else torch.bfloat16) for vector in vectors])


def _vectors(operator: Spectral, recipe: Recipe, name: str, selector: Selector) -> Tensor:
    """Return the virtual task vectors of one matrix: see `as_kept`."""
    taus = task_matrices(operator, recipe, name, selector)
    if isinstance(operator, TsvM):
        found = spectral.tsv_m(taus, operator.rank)
    elif isinstance(operator, IsoC):
        found = spectral.iso_c(taus)
    elif isinstance(operator, IsoCts):
        found = spectral.iso_cts(taus, operator.common)
    elif isinstance(operator, SubspaceBoosting):
        found = spectral.subspace_boosting(taus, operator.energy)
    elif isinstance(operator, Opcm):
        found = spectral.opcm(taus, operator.energy)
    elif isinstance(operator, Doge):
        descent = spectral.Descent(operator.eta, operator.subspace, operator.iterations, operator.rate)
        found = spectral.doge(taus, _masks(operator, recipe, name, selector, taus), descent)
    else:
        found = spectral.swudi(taus, operator.rank, operator.time)
    return as_kept(found, name, selector)


def _masks(operator: Doge, recipe: Recipe, name: str, selector: Selector, taus: Sequence[Tensor]) -> list[Tensor]:
    masks = []
    for source, tau in zip(recipe.experts, taus, strict=True):
        keep, delta = largest(selector, source, name, operator.keep, operator.scope), tau.reshape(-1).float()
        ones = torch.ones_like(delta)
        masks.append((ones if keep is None else keep.mask(0, len(delta), delta, ones)).view_as(tau).double())
    return masks


def parameters_of(operator: MergeOperator) -> tuple[tuple[str, object], ...]:
    """Return what the vectors depend on: everything but the weights and the scale."""
    return tuple(sorted(operator.model_dump(exclude={"weights", "scale"}).items()))


def key_of(operator: MergeOperator, recipe: Recipe) -> str:
    """Return the name in the cache of what is prepared for an operator from the sources of ``recipe``."""
    sources = [content(recipe.sources[i]) for i in (base_of(recipe), *recipe.experts)]
    return digest({"format": _FORMAT, "operator": dict(parameters_of(operator)), "sources": sources})


MAKERS: dict[type[MergeOperator], Maker] = dict.fromkeys(get_args(Spectral), added)
