"""OTA merging: task vectors trimmed and weighed by the second moments that the experts' training left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.errors import BadSource
from evomerge.merging.coefficients import Kernel, base_of, check_size
from evomerge.merging.kernels import Scratch, chunks, finish, float32, part
from evomerge.merging.maker import Maker
from evomerge.merging.prepared import prepared
from evomerge.merging.selection import Selector
from evomerge.merging.sources import resolve
from evomerge.merging.virtual import as_kept, key_of, task_matrices
from search_spaces.canonical import digest
from search_spaces.operators import MergeOperator, Ota
from search_spaces.recipe import Recipe
from search_spaces.vocabulary import vocabulary_keys

MOMENTS = "second_moments.safetensors"
LEVELS = 1 << 14  # shares of a tensor that densities are told apart by; it must fit into int16
_FLOOR = 1e-6  # of the mean second moment of all experts in a tensor


@dataclass(frozen=True)
class MaskedAddition:
    """``theta_p + scale * sum_i w_i [level_i < limit_i] E_i``.

    Attributes:
        pivot: position of the base.
        vectors: E, (count, n), any float dtype.
        levels: int16 (count, n).
    """

    pivot: int
    vectors: Tensor
    levels: Tensor
    limits: tuple[int, ...]
    weights: tuple[float, ...]
    scale: float = 1.0

    def run(self, sources: Sequence[Tensor], out: Tensor, scratch: Scratch, first: int = 0) -> None:
        """Write elements ``first`` and on of the sum to ``out``; of ``sources`` only the base is read."""
        for start, stop, target in chunks(out, scratch, first):
            size = stop - start
            pivot = float32(part(sources[self.pivot], start, stop), scratch.row(0, size))
            total, kept = scratch.row(1, size).zero_(), scratch.row(3, size)
            for number, (limit, weight) in enumerate(zip(self.limits, self.weights, strict=True)):
                torch.lt(part(self.levels[number], start, stop).to(kept.device), limit, out=kept)
                vector = float32(part(self.vectors[number], start, stop), scratch.row(2, size))
                total.add_(kept.mul_(vector), alpha=weight * self.scale)
            finish(total, pivot, 1.0, target)
            scratch.watch(target)


def ota(operator: Ota, recipe: Recipe, name: str, selector: Selector) -> Kernel:
    """Return the kernel that merges tensor ``name``, preparing its vectors and levels if no one has.

    Raises:
        CandidateFailed: a coefficient is beyond the range of float32, or a source is not finite.
        BadSource: the second moments of an expert are not there, or do not fit.
        NotEnoughRoom: what is prepared cannot be written.
    """
    key = selector.remember(("prepared", "ota", operator.exponent, recipe.sources), lambda: _key(operator, recipe))
    vectors = prepared("virtual", key, name, lambda: _vectors(operator, recipe, name, selector))
    levels = prepared("virtual", key, f"{name}.levels", lambda: _levels(operator, recipe, name, selector))
    for weight in operator.weights:
        check_size(weight * operator.scale)
    limits = tuple(round(density * LEVELS) for density in operator.densities)
    return MaskedAddition(base_of(recipe), vectors, levels, limits, operator.weights, operator.scale)


def _key(operator: Ota, recipe: Recipe) -> str:
    whole = operator.model_copy(update={"densities": (1.0,)})
    return digest([key_of(whole, recipe), *vocabulary_keys(recipe.vocabulary)])


def _vectors(operator: Ota, recipe: Recipe, name: str, selector: Selector) -> Tensor:
    taus = task_matrices(operator, recipe, name, selector)
    return as_kept(weighed(taus, _moments(recipe, name, selector), operator.exponent), name, selector)


def _levels(operator: Ota, recipe: Recipe, name: str, selector: Selector) -> Tensor:
    pairs = zip(task_matrices(operator, recipe, name, selector), _moments(recipe, name, selector), strict=True)
    return torch.stack([levels_of(moments * tau.square()) for tau, moments in pairs])


def weighed(taus: Sequence[Tensor], moments: Sequence[Tensor], exponent: float) -> list[Tensor]:
    """Return ``K P_i tau_i / sum_j P_j`` with ``P_i = v_i^exponent``, float64, in the shape of ``taus``."""
    floor = _FLOOR * sum(float(each.mean()) for each in moments) / len(moments)
    shares = [each.clamp(min=floor or 1.0) ** exponent for each in moments]
    total = torch.stack(shares).sum(0)
    return [tau * (len(taus) * share / total) for tau, share in zip(taus, shares, strict=True)]


def levels_of(scores: Tensor) -> Tensor:
    """Return by which share of the ``LEVELS`` largest scores each element is reached first, int16 (n,)."""
    order = torch.argsort(scores.reshape(-1), descending=True, stable=True)
    levels = torch.empty(len(order), dtype=torch.int16)
    levels[order] = (torch.arange(len(order)) * LEVELS // max(len(order), 1)).to(torch.int16)
    return levels


def _moments(recipe: Recipe, name: str, selector: Selector) -> list[Tensor]:
    """Return the second moments of every expert, float64 in the tensor's shape."""
    return [
        _read(resolve(recipe.sources[i].path, recipe.sources[i].revision) / MOMENTS, name, selector.shapes[name])
        for i in recipe.experts
    ]


def _read(file: Path, name: str, shape: tuple[int, ...]) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            found: Tensor = opened.get_tensor(name)
    except FileNotFoundError:
        raise BadSource(
            f"{file.parent}: ota needs the second moments of Adam at the end of training (exp_avg_sq) as {MOMENTS}, "
            "named like the weights"
        ) from None
    except (SafetensorError, OSError) as error:
        raise BadSource(f"{file}: has no readable tensor {name!r} ({error})") from None
    if tuple(found.shape) != shape:
        raise BadSource(f"{file}: {name!r} has shape {list(found.shape)}, the weights have {list(shape)}")
    if not bool(torch.isfinite(found).all()) or bool((found < 0).any()):
        raise BadSource(f"{file}: {name!r} holds values that are no second moments (negative, NaN or infinite)")
    return found.double()


MAKERS: dict[type[MergeOperator], Maker] = {Ota: ota}
