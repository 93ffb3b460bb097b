"""Virtual task vectors: what an operator that is linear in its weights makes of the experts, prepared once, on disk.

A candidate is then ``theta_0 + sum_i w_i E_i``: it costs what task arithmetic does, whatever the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging import spectral, statistical, statistics
from evomerge.merging.coefficients import Kernel, base_of, check_size, effective
from evomerge.merging.kernels import Combination, Scratch, chunks, finish, float32, part
from evomerge.merging.prepared import prepared
from evomerge.merging.selection import Selector
from evomerge.merging.statistics import Statistic, Statistical, content
from evomerge.merging.terms import Term
from search_spaces.canonical import digest
from search_spaces.operators import Fisher, IsoC, IsoCts, Rcp, SubspaceBoosting, Swudi, TsvM
from search_spaces.recipe import Recipe
from search_spaces.tensors import in_stack

_FORMAT = 1  # of what is prepared: a change makes what lies in caches obsolete
Spectral = TsvM | Swudi | IsoC | IsoCts | SubspaceBoosting
Virtual = Spectral | Statistical


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

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch) -> None:
        """Write the sum to ``out`` (n,); of ``sources`` only the base is read."""
        for start, stop, target in chunks(out, scratch):
            size = stop - start
            pivot = float32(part(sources[self.pivot], start, stop), scratch.row(0, size))
            total = scratch.row(1, size).zero_()
            for vector, weight in zip(self.vectors, self.weights, strict=True):
                total.add_(float32(part(vector, start, stop), scratch.row(2, size)), alpha=weight * self.scale)
            finish(total, pivot, 1.0, target)
            scratch.watch(target)


def added(operator: Virtual, recipe: Recipe, name: str, selector: Selector) -> Kernel:
    """Return the kernel that merges tensor ``name``, preparing its virtual task vectors if no one has.

    Raises:
        CandidateFailed: a coefficient is beyond the range of float32.
        BadRecipe: the calibration prompts, or the statistics that were made of them, are not here.
        NotEnoughRoom: they cannot be written.
    """
    experts = recipe.experts
    weights: tuple[float, ...] | None = getattr(operator, "weights", None)  # those that have none are one vector
    known = ("prepared", _parameters(operator), recipe.sources)
    if isinstance(operator, Statistical):
        found = selector.remember(("statistics", *known), lambda: statistics.read(operator, recipe))
        covered, share = name in found[-1].files, 1.0
    else:
        covered, share = in_stack(name) and len(selector.shapes[name]) == 2, 1.0 / len(experts)
    if not covered:
        shares = [weight * operator.scale * share for weight in weights or (1.0,) * len(experts)]
        terms = [Term(source, each) for source, each in zip(experts, shares, strict=True)]
        return Combination(base_of(recipe), 1.0, effective(terms))
    key = selector.remember(known, lambda: _key(operator, recipe))

    def made() -> Tensor:
        base = selector.sources[selector.base](name)
        taus = _task_vectors(recipe, name, selector)
        vectors = (
            _statistical(operator, recipe, name, taus, found)
            if isinstance(operator, Statistical)
            else _spectral(operator, taus)
        )
        return _stored(vectors, base.dtype)

    vectors = prepared("virtual", key, name, made)
    used = weights or (1.0,)
    for weight in used:
        check_size(weight * operator.scale)
    return Addition(base_of(recipe), vectors, used, operator.scale)


def _task_vectors(recipe: Recipe, name: str, selector: Selector) -> list[Tensor]:
    """Return the task vector of every expert, float64 in the tensor's shape."""
    base = selector.sources[selector.base](name).double()
    return [(selector.sources[i](name).double() - base).view(selector.shapes[name]) for i in recipe.experts]


def _stored(vectors: Sequence[Tensor], source: torch.dtype) -> Tensor:
    """Return virtual task vectors as they are stored, (count, n): float32 for float32 sources, else bfloat16."""
    dtype = torch.float32 if source is torch.float32 else torch.bfloat16
    return torch.stack([vector.reshape(-1).to(dtype) for vector in vectors])


def _spectral(operator: Spectral, taus: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(operator, TsvM):
        return spectral.tsv_m(taus, operator.rank)
    if isinstance(operator, IsoC):
        return spectral.iso_c(taus)
    if isinstance(operator, IsoCts):
        return spectral.iso_cts(taus, operator.common)
    if isinstance(operator, SubspaceBoosting):
        return spectral.subspace_boosting(taus, operator.energy)
    return spectral.swudi(taus, operator.rank, operator.time)


def _statistical(
    operator: Statistical, recipe: Recipe, name: str, taus: Sequence[Tensor], found: Sequence[Statistic]
) -> list[Tensor]:
    """Return the virtual task vectors of a tensor that the statistics cover, in its shape."""
    shape = taus[0].shape
    if isinstance(operator, Fisher):
        scaled = [each.tensor(name).view(shape).double() / (each.numbers["rms"] or 1.0) for each in found]
        return statistical.fisher(taus, scaled, operator.exponent)
    if isinstance(operator, Rcp):
        votes = dict(zip((i for i in recipe.experts if i != operator.source), found[1:], strict=True))
        pairs = zip(recipe.experts, taus, strict=True)
        return [statistical.voted(t, votes[i].tensor(name).view(shape)) if i in votes else t for i, t in pairs]
    turned = name in found[0].transposed
    grams = [each.tensor(name) for each in found]
    vectors = statistical.regmean([tau.T if turned else tau for tau in taus], grams, operator.off_diagonal)
    return [vector.T if turned else vector for vector in vectors]


def _parameters(operator: Virtual) -> tuple[tuple[str, object], ...]:
    """Return what the vectors depend on: everything but the weights and the scale."""
    return tuple(sorted(operator.model_dump(exclude={"weights", "scale"}).items()))


def _key(operator: Virtual, recipe: Recipe) -> str:
    sources = [content(recipe.sources[i]) for i in (base_of(recipe), *recipe.experts)]
    return digest({"format": _FORMAT, "operator": dict(_parameters(operator)), "sources": sources})
