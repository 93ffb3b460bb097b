"""Operators on the factors of LoRA adapters: what they add is of low rank, and can be written as an adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import CandidateFailed
from evomerge.merging.adapter import Factors
from evomerge.merging.coefficients import Kernel, base_of, check_size
from evomerge.merging.kernels import Combination
from evomerge.merging.maker import Maker
from evomerge.merging.selection import Selector
from evomerge.merging.whole import MadeWhole
from search_spaces.operators import EvoLora, LoraLego, MergeOperator
from search_spaces.recipe import Recipe

_STARTS = 8  # of k-means; the best counts


@dataclass(frozen=True)
class LowRank(MadeWhole):
    """``theta_p + scale * up down``.

    Attributes:
        pivot: position of the base.
        up: float32 (rows, rank).
        down: float32 (rank, columns).
    """

    pivot: int
    up: Tensor
    down: Tensor
    scale: float = 1.0

    def make(self) -> Tensor:
        """See `MadeWhole`; one float32 copy of the tensor."""
        return (self.up @ self.down).view(-1)


def low_rank(operator: LoraLego | EvoLora, recipe: Recipe, name: str, selector: Selector) -> Kernel:
    """Return the kernel that merges tensor ``name``.

    Raises:
        BadRecipe: an expert is no adapter.
        BadSource: an adapter changes more than plain matrices.
        CandidateFailed: a coefficient is beyond the range of float32.
    """
    factors = [selector.factors(expert, name) for expert in recipe.experts]
    scale = check_size(operator.scale)
    if isinstance(operator, LoraLego):
        found = [each for each in factors if each is not None]
        pair = selector.remember(
            ("lego", recipe.experts, name, operator.units), lambda: lego(found, operator.units) if found else None
        )
    else:
        pair = _sparse(operator, factors)
    if pair is None:
        return Combination(base_of(recipe), 1.0, ())
    up, down = (side.float() for side in pair)
    if not bool(torch.isfinite(up).all()):
        raise CandidateFailed(f"{operator.kind}: factors of tensor {name!r} are beyond the range of float32")
    return LowRank(base_of(recipe), up, down, scale)


def _sparse(operator: EvoLora, factors: Sequence[Factors | None]) -> tuple[Tensor, Tensor] | None:
    """Return the stacked ``w_i s_i B_i`` and ``top(A_i)``, float64; none where nothing is kept of anyone."""
    ups, downs = [], []
    for each, weight, density in zip(factors, operator.weights, operator.densities, strict=True):
        if each is not None and weight != 0.0 and density > 0.0:
            ups.append(each.up.double() * (check_size(weight) * each.scale))
            downs.append(largest_of(each.down.double(), density))
    return (torch.cat(ups, dim=1), torch.cat(downs)) if ups else None


def largest_of(matrix: Tensor, density: float) -> Tensor:
    """Return ``matrix`` with its ``max(1, int(density n))`` largest elements, the first of equals, and zeros."""
    flat = matrix.flatten()
    kept = torch.argsort(flat.abs(), descending=True, stable=True)[: max(1, int(density * flat.numel()))]
    out = torch.zeros_like(flat)
    out[kept] = flat[kept]
    return out.view_as(matrix)


def lego(factors: Sequence[Factors], units: int | None) -> tuple[Tensor, Tensor]:
    """Return the factors, float64 (rows, k) and (k, columns), of LoRA-LEGO's merge of one matrix."""
    rows = factors[0].up.shape[0]
    parts = []
    for each in factors:
        root = math.sqrt(abs(each.scale))
        parts.append(
            torch.cat([each.up.double().T * math.copysign(root, each.scale), each.down.double() * root], dim=1)
        )
    vectors = torch.cat(parts)
    rank = len(vectors) / len(factors)
    labels = _clusters(vectors.numpy(), min(units or round(rank), len(vectors)))
    means = []
    for label in np.unique(labels):
        members = vectors[torch.from_numpy(labels == label)]
        mean = members.mean(0)
        length = float(mean.norm())
        means.append(mean * (float(members.norm(dim=1).mean()) / length if length > 0.0 else 0.0))
    merged = torch.stack(means) * (rank / len(means)) ** 0.25  # of both sides: sqrt(r / k) of their product
    return merged[:, :rows].T.contiguous(), merged[:, rows:].contiguous()


def _clusters(vectors: np.ndarray, count: int) -> np.ndarray:
    """Return the cluster of every vector, of the best of some runs of k-means; the same each time."""
    if count == len(vectors):
        return np.arange(count)
    from scipy.cluster.vq import kmeans2  # type: ignore[import-untyped]

    best = (math.inf, np.zeros(len(vectors), int))
    for seed in range(_STARTS):
        means, labels = kmeans2(vectors, count, iter=50, minit="++", missing="warn", rng=np.random.default_rng(seed))
        best = min(best, (float(((vectors - means[labels]) ** 2).sum()), labels), key=lambda run: run[0])
    return best[1]


MAKERS: dict[type[MergeOperator], Maker] = dict.fromkeys((LoraLego, EvoLora), low_rank)
