"""What the rounding to 16 bits leaves of a merge: the cosine between the step that was asked for and the one written.

Weights of 0.02 in bfloat16 are about 1e-4 apart, which is what reinforcement learning moves them by: steps turn, or
vanish.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.pieces import Fill

WARN_BELOW = 0.99
_RUNS, _RUN = 4, 1 << 12  # of larger tensors so many runs of so many elements, evenly spread, stand for the whole


class Rounding:
    """Adds up what rounding does, tensor by tensor, against the weights of a base."""

    def __init__(self, base: Checkpoint, dtype: torch.dtype) -> None:
        """Begin a merge on ``base`` that is written in ``dtype``."""
        self._base, self.dtype = base, dtype
        self._sums = torch.zeros(3, dtype=torch.float64)
        self.worst: tuple[float, str] | None = None

    def look(self, name: str, merge: Fill) -> None:
        """Take note of what the cast changes of tensor ``name``, which ``merge`` makes."""
        base = self._base.tensor(name).view(-1)
        spans = _spans(base.numel())
        own = torch.cat([base[start:stop] for start, stop in spans]).double()
        merged = torch.empty(own.numel())
        for part, (start, _) in zip(torch.split(merged, own.numel() // len(spans)), spans, strict=True):
            merge(part, start)
        asked, written = merged.double() - own, merged.to(self.dtype).double() - own
        sums = torch.stack([asked.dot(asked), written.dot(written), asked.dot(written)])
        self._sums += sums * (base.numel() / own.numel())
        cosine = _cosine(sums)
        if cosine is not None and (self.worst is None or cosine < self.worst[0]):
            self.worst = cosine, name

    @property
    def cosine(self) -> float | None:
        """Between the whole steps; none where the merge is the base."""
        return _cosine(self._sums)

    @property
    def sentence(self) -> str | None:
        """What to write into a model card."""
        if self.cosine is None or self.worst is None:
            return None
        return (
            f"Rounding to {self._name} keeps a cosine of {self.cosine:.4f} between the step from the base that the "
            f"recipe asks for and the one that the weights hold; lowest in `{self.worst[1]}`, {self.worst[0]:.4f}."
        )

    @property
    def warning(self) -> str | None:
        """What the user should know, if rounding changes what was asked for."""
        if self.cosine is None or self.cosine >= WARN_BELOW:
            return None
        finer = "float32" if self.dtype is torch.float16 else "float16 or float32"
        return (
            f"rounding to {self._name} changes the merge: cosine {self.cosine:.3f} between the step from the base that "
            f"was asked for and the one written; --dtype {finer} keeps it"
        )

    @property
    def _name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def _spans(size: int) -> list[tuple[int, int]]:
    if size <= _RUNS * _RUN:
        return [(0, size)]
    return [(start, start + _RUN) for start in (i * (size - _RUN) // (_RUNS - 1) for i in range(_RUNS))]


def _cosine(sums: Tensor) -> float | None:
    """Return the cosine that |a|^2, |b|^2 and <a, b> mean; 0 where only b is zero, none where a is."""
    asked, written, both = sums.tolist()
    if asked == 0.0:
        return None
    return both / math.sqrt(asked * written) if written else 0.0
