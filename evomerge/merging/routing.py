"""What a router does on calibration prompts, and a router for groups of its experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evomerge.errors import BadSource
from evomerge.merging.exhibit import Exhibit
from evomerge.merging.mixtures import EXPERTS, Mixture
from search_spaces.calibration import Sample

Step = Callable[[], None]
_RIDGE = 1e-3  # over the mean of the diagonal: what the prompts do not decide stays as it was


@dataclass(frozen=True)
class Routing:
    """What prompts show of one mixture of E experts.

    Attributes:
        counts: how often each expert was chosen, float64 (E,).
        products: inner products of the experts' logits over all tokens, float64 (E, E).
    """

    counts: np.ndarray
    products: np.ndarray

    @property
    def frequencies(self) -> np.ndarray:
        """Share of each expert in all choices, float64 (E,)."""
        shares: np.ndarray = self.counts / self.counts.sum()
        return shares

    @property
    def similarity(self) -> np.ndarray:
        """Cosine of the experts' logits, float64 (E, E); 0 where an expert's are all 0."""
        length = np.sqrt(np.diag(self.products))
        length = np.where(length > 0.0, length, np.inf)
        cosine: np.ndarray = self.products / np.outer(length, length)
        return cosine


@dataclass(frozen=True)
class Group:
    """Experts that become one: the dominant one and all members, it included, in order."""

    dominant: int
    members: tuple[int, ...]


def groups_of(routing: Routing, count: int) -> tuple[Group, ...]:
    """Return ``count`` groups: the most frequent experts, and with each those whose logits are most similar to its own.

    M-SMoE (Li et al. 2024, section 3.2), with as many dominant experts in every layer. Ties go to the first expert.
    """
    dominant = np.sort(np.argsort(-routing.counts, kind="stable")[:count])
    nearest = routing.similarity[:, dominant].argmax(1)
    nearest[dominant] = np.arange(count)
    return tuple(Group(int(d), tuple(np.flatnonzero(nearest == g).tolist())) for g, d in enumerate(dominant))


def observe(exhibit: Exhibit, mixtures: Sequence[Mixture], samples: Sequence[Sample], step: Step) -> list[Routing]:
    """Return what ``samples`` show of every mixture of the model on display.

    Raises:
        BadSource: a logit is not finite.
    """
    counts = [torch.zeros(m.experts, dtype=torch.float64) for m in mixtures]
    products = [torch.zeros((m.experts, m.experts), dtype=torch.float64) for m in mixtures]

    def chosen(number: int, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        counts[number] += torch.bincount(arguments[1].reshape(-1).cpu(), minlength=len(counts[number]))

    def routed(number: int, router: nn.Module, arguments: tuple[Any, ...]) -> None:
        logits = logits_of(router, inputs_of(arguments)).double().cpu()
        products[number] += logits.T @ logits

    with _hooks(exhibit, mixtures, experts=chosen, routers=routed):
        run(exhibit, samples, step)
    for mixture, product in zip(mixtures, products, strict=True):
        if not bool(torch.isfinite(product).all()):
            path = exhibit.checkpoints[0].path
            raise BadSource(f"{path}: on the calibration prompts the logits of {mixture.routers[0]!r} are not finite")
    return [Routing(c.numpy(), p.numpy()) for c, p in zip(counts, products, strict=True)]


@torch.no_grad()
def run(exhibit: Exhibit, samples: Sequence[Sample], step: Step) -> None:
    """Run the model on ``samples``, one at a time."""
    for sample in samples:
        exhibit.model.base_model(exhibit.tokens(sample), use_cache=False)
        step()


def inputs_of(arguments: tuple[Any, ...]) -> Tensor:
    """Return what enters a router, float32 (tokens, width)."""
    hidden: Tensor = arguments[0]
    return hidden.reshape(-1, hidden.shape[-1]).float()


def logits_of(router: Any, inputs: Tensor) -> Tensor:
    """Return the logits of all experts, float32 (tokens, E)."""
    weight, bias = router.weight, getattr(router, "bias", None)
    return nn.functional.linear(inputs, weight.float(), None if bias is None else bias.float())


@contextmanager
def _hooks(exhibit: Exhibit, mixtures: Sequence[Mixture], **takes: Callable[..., None]) -> Iterator[None]:
    """Inside, ``routers`` and ``experts`` hear the arguments of those modules, with the number of the mixture first."""
    hooks = []
    for number, mixture in enumerate(mixtures):
        for what, child in (("routers", mixture.router), ("experts", EXPERTS)):
            if what in takes:
                module = exhibit.model.get_submodule(f"{mixture.module}.{child}")
                hooks.append(module.register_forward_pre_hook(partial(takes[what], number)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def reroute(
    exhibit: Exhibit,
    mixtures: Sequence[Mixture],
    groups: Sequence[Sequence[Group]],
    samples: Sequence[Sample],
    step: Step,
) -> list[tuple[Tensor, ...]]:
    """Return routers for ``groups`` of the experts: weights, float64 (groups, width), and a bias where there was one.

    The softmax gave the members of a group together what their logits' log-sum-exp would get. A group's row is the
    dominant expert's plus the step that brings its logits nearest to that on ``samples``: least squares with a ridge,
    up to what all logits of a token have in common, which no softmax sees.

    Raises:
        NotEnoughRoom: the Gram matrices of the inputs, 4 bytes an element, do not fit into memory.
    """
    routers = [exhibit.model.get_submodule(f"{mixture.module}.{mixture.router}") for mixture in mixtures]
    fits = [_Fit(router, own) for router, own in zip(routers, groups, strict=True)]
    exhibit.reserve(sum(4 * fit.width**2 for fit in fits), "the Gram matrices of the routers")

    def routed(number: int, router: nn.Module, arguments: tuple[Any, ...]) -> None:
        fits[number].add(router, inputs_of(arguments))

    with _hooks(exhibit, mixtures, routers=routed):
        run(exhibit, samples, step)
    return [fit.solve() for fit in fits]


class _Fit:
    """Least squares for the rows of one router; a bias is one more column, whose input is 1."""

    def __init__(self, router: Any, groups: Sequence[Group]) -> None:
        self._biased = getattr(router, "bias", None) is not None
        self._members = [list(group.members) for group in groups]
        self._dominant = [group.dominant for group in groups]
        parts = [router.weight, router.bias[:, None]] if self._biased else [router.weight]
        self._start = torch.cat(parts, dim=1)[self._dominant].double().cpu()
        self.width = self._start.shape[1]
        self._gram, self._target = (
            torch.zeros((self.width, columns), device=router.weight.device) for columns in (self.width, len(groups))
        )

    def add(self, router: nn.Module, inputs: Tensor) -> None:
        """Take what entered the router, float32 (tokens, width)."""
        logits = logits_of(router, inputs)
        wanted = torch.stack([logits[:, members].logsumexp(1) for members in self._members], dim=1)
        step = wanted - logits[:, self._dominant]
        if self._biased:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        self._gram.addmm_(inputs.T, inputs)
        self._target.addmm_(inputs.T, step - step.mean(1, keepdim=True))

    def solve(self) -> tuple[Tensor, ...]:
        """Return the rows, and the bias apart."""
        gram = self._gram.double().cpu()
        gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + torch.finfo(torch.float32).tiny)
        rows = self._start + torch.linalg.solve(gram, self._target.double().cpu()).T
        return (rows[:, :-1], rows[:, -1]) if self._biased else (rows,)
