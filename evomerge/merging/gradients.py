"""Statistics of gradients on calibration prompts: the diagonal Fisher information, and votes for what to keep.

A gradient is taken up and dropped as soon as its tensor has it, so that never all of them are in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import BadSource
from evomerge.merging.exhibit import Exhibit
from evomerge.merging.statistics import Recorder, Statistic
from search_spaces.calibration import Sample

_PIECE = 1 << 20  # elements that are taken as float64 at a time
Step = Callable[[], None]
Take = Callable[[str, Tensor, Tensor], None]  # name, weights, gradient


def fisher(exhibit: Exhibit, source: int, samples: Sequence[Sample], recorder: Recorder, step: Step) -> None:
    """Record the mean over ``samples`` of the squared gradients of ``mean_t log p(y_t | y_<t, x)`` in every tensor.

    y_t is drawn from the model's own distribution after the prompt and the reference answer up to t; the draws of a
    sample are the same for all models. float32 in memory (4 bytes a parameter beside the model), stored as float32,
    for bfloat16 models as bfloat16. `rms` is the root mean square over all elements.

    Raises:
        BadSource: a gradient is not finite.
        NotEnoughRoom: they do not fit into memory or on the disk.
    """
    exhibit.show(source)
    exhibit.reserve(4 * _elements(exhibit), "squared gradients")
    sums = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in exhibit.tensors.items()}

    def take(name: str, _: Tensor, gradient: Tensor) -> None:
        gradient = gradient.float()
        sums[name].addcmul_(gradient, gradient, value=1.0 / len(samples))

    with taking_gradients(exhibit, take):
        for sample in samples:
            (-_log_likelihood(exhibit, sample, _drawn)).backward()  # type: ignore[no-untyped-call]
            step()
    total = 0.0
    for name in list(sums):
        value = sums.pop(name)
        total += sum(float(piece.double().square().sum()) for piece in torch.split(value.view(-1), _PIECE))
        _check_finite(exhibit, source, name, value)
        recorder.add([name], value.to(torch.bfloat16) if exhibit.recipe.dtype == "bfloat16" else value)
    recorder.finish(rms=(total / _elements(exhibit)) ** 0.5)


def votes(
    exhibit: Exhibit,
    source: int,
    samples: Sequence[Sample],
    recorder: Recorder,
    step: Step,
    *,
    kept: tuple[int, Statistic],
    protection: float,
) -> None:
    """Record how many more of ``samples`` vote for an element of expert ``source`` than against it, int16.

    A sample votes for it where ``g theta + protection F (theta_r - theta)^2 <= 0``, g being the gradient of the mean
    negative log-likelihood of the reference answer's tokens; ``kept`` is the position r of the expert whose ability is
    kept, and its Fisher information F. It takes 6 bytes a parameter of memory beside the model.

    Raises:
        BadSource: a gradient is not finite.
        NotEnoughRoom: they do not fit into memory or on the disk.
    """
    exhibit.show(source)
    exhibit.reserve(6 * _elements(exhibit), "votes on parameters")
    other, information = kept
    counts = {name: torch.zeros_like(tensor, dtype=torch.int16) for name, tensor in exhibit.tensors.items()}
    costs = {}
    for name, tensor in exhibit.tensors.items():
        step_away = exhibit.checkpoints[other].tensor(name).to(tensor.device).float() - tensor.float()
        costs[name] = protection * information.tensor(name).to(tensor.device).float() * step_away.square()

    def take(name: str, weights: Tensor, gradient: Tensor) -> None:
        score = torch.addcmul(costs[name], gradient.float(), weights.float())
        _check_finite(exhibit, source, name, score)
        counts[name] += 1 - 2 * (score > 0.0).to(torch.int16)

    with taking_gradients(exhibit, take):
        for sample in samples:
            (-_log_likelihood(exhibit, sample, _reference)).backward()  # type: ignore[no-untyped-call]
            step()
    for name, value in counts.items():
        recorder.add([name], value)
    recorder.finish(samples=len(samples))


@contextmanager
def taking_gradients(exhibit: Exhibit, take: Take) -> Iterator[None]:
    """Inside, the gradient of every tensor goes to ``take`` during the backward pass, and nowhere else."""

    def took(parts: list[tuple[str, slice]], parameter: Any) -> None:
        weights, gradient = parameter.detach().view(-1), parameter.grad.reshape(-1)
        for name, place in parts:
            shape = exhibit.tensors[name].shape
            take(name, weights[place].view(shape), gradient[place].view(shape))
        parameter.grad = None

    model = exhibit.model
    model.requires_grad_(True)
    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(took, exhibit.parts(parameter)))
        for parameter in model.parameters()
    ]
    try:
        with torch.enable_grad():
            yield
    finally:
        model.requires_grad_(False)
        for hook in hooks:
            hook.remove()


def _log_likelihood(exhibit: Exhibit, sample: Sample, labels: Callable[[Sample, Tensor], Tensor]) -> Tensor:
    """Return the mean log-likelihood of one label at each token of the answer."""
    logits = exhibit.model(exhibit.tokens(sample), use_cache=False).logits[0, sample.answer - 1 : -1]
    likelihoods = torch.log_softmax(logits.float(), dim=-1)
    chosen = labels(sample, likelihoods.detach()).to(likelihoods.device)
    return likelihoods.gather(1, chosen[:, None]).mean()


def _reference(sample: Sample, _: Tensor) -> Tensor:
    return torch.tensor(sample.tokens[sample.answer :])


def _drawn(sample: Sample, likelihoods: Tensor) -> Tensor:
    """Draw a token at every position: the inverse of the distribution function at numbers that the sample decides."""
    text = ",".join(map(str, sample.tokens))
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    numbers = torch.rand((len(likelihoods), 1), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    reached = likelihoods.double().cpu().exp().cumsum(-1)
    return torch.searchsorted(reached, numbers * reached[:, -1:]).clamp(max=reached.shape[1] - 1)[:, 0]


def _elements(exhibit: Exhibit) -> int:
    return sum(tensor.numel() for tensor in exhibit.tensors.values())


def _check_finite(exhibit: Exhibit, source: int, name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        path = exhibit.checkpoints[source].path
        raise BadSource(f"{path}: its gradient on the calibration prompts is not finite in tensor {name!r}")
