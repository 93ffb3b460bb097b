"""Virtual task vectors: what an operator that is linear in its weights makes of the experts, prepared once, on disk.

A candidate is then ``theta_0 + sum_i w_i E_i``: it costs what task arithmetic does, whatever the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from evomerge.errors import CandidateFailed
from evomerge.merging import spectral
from evomerge.merging.coefficients import Kernel, base_of, check_size, effective
from evomerge.merging.kernels import Combination, Scratch, chunks, finish, float32, part
from evomerge.merging.maker import Maker
from evomerge.merging.prepared import prepared
from evomerge.merging.selection import Selector
from evomerge.merging.sources import fingerprint, resolve
from evomerge.merging.terms import Term
from search_spaces.canonical import digest
from search_spaces.operators import IsoC, IsoCts, MergeOperator, SubspaceBoosting, Swudi, TsvM
from search_spaces.recipe import Recipe, Source
from search_spaces.tensors import in_stack

_FORMAT = 1  # of what is prepared: a change makes what lies in caches obsolete
Weighted = TsvM | Swudi
Spectral = Weighted | IsoC | IsoCts | SubspaceBoosting  # those that have no weights are one vector


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


def added(operator: Spectral, recipe: Recipe, name: str, selector: Selector) -> Kernel:
    """Return the kernel that merges tensor ``name``, preparing its virtual task vectors if no one has.

    Raises:
        CandidateFailed: a coefficient is beyond the range of float32.
        NotEnoughRoom: they cannot be written.
    """
    experts = recipe.experts
    weights = operator.weights if isinstance(operator, Weighted) else (1.0,) * len(experts)
    shape = selector.shapes[name]
    if not in_stack(name) or len(shape) != 2:
        shares = [weight * operator.scale / len(experts) for weight in weights]
        terms = [Term(source, share) for source, share in zip(experts, shares, strict=True)]
        return Combination(base_of(recipe), 1.0, effective(terms))
    key = selector.remember(("prepared", _parameters(operator), recipe.sources), lambda: _key(operator, recipe))
    vectors = prepared("virtual", key, name, lambda: _vectors(operator, recipe, name, selector))
    used = weights if isinstance(operator, Weighted) else (1.0,)
    for weight in used:
        check_size(weight * operator.scale)
    return Addition(base_of(recipe), vectors, used, operator.scale)


def _vectors(operator: Spectral, recipe: Recipe, name: str, selector: Selector) -> Tensor:
    """Return the virtual task vectors of one matrix, (count, n): float32 for float32 sources, else bfloat16.

    Raises:
        CandidateFailed: a source holds NaN or infinite values.
    """
    base = selector.sources[selector.base](name)
    shape = selector.shapes[name]
    taus = [(selector.sources[i](name).double() - base.double()).view(shape) for i in recipe.experts]
    if not all(bool(torch.isfinite(tau).all()) for tau in taus):
        raise CandidateFailed(f"{operator.kind}: a source has NaN or infinite values in tensor {name!r}")
    if isinstance(operator, TsvM):
        found = spectral.tsv_m(taus, operator.rank)
    elif isinstance(operator, IsoC):
        found = spectral.iso_c(taus)
    elif isinstance(operator, IsoCts):
        found = spectral.iso_cts(taus, operator.common)
    elif isinstance(operator, SubspaceBoosting):
        found = spectral.subspace_boosting(taus, operator.energy)
    else:
        found = spectral.swudi(taus, operator.rank, operator.time)
    dtype = torch.float32 if base.dtype is torch.float32 else torch.bfloat16
    return torch.stack([vector.reshape(-1).to(dtype) for vector in found])


def _parameters(operator: Spectral) -> tuple[tuple[str, object], ...]:
    """Return what the vectors depend on: everything but the weights and the scale."""
    return tuple(sorted(operator.model_dump(exclude={"weights", "scale"}).items()))


def _key(operator: Spectral, recipe: Recipe) -> str:
    sources = [_content(recipe.sources[i]) for i in (base_of(recipe), *recipe.experts)]
    return digest({"format": _FORMAT, "operator": dict(_parameters(operator)), "sources": sources})


def _content(source: Source) -> str:
    return source.digest or fingerprint(resolve(source.path, source.revision))


MAKERS: dict[type[MergeOperator], Maker] = dict.fromkeys(get_args(Spectral), added)
