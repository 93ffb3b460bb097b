"""Seeded sampling: what transformers does to logits, and draws that depend on the request and the step alone.

transformers draws from one generator for the whole batch, so its answers change with whatever else is in the batch.
Here every request has a key; the uniform number of step t is output t of the counter-based generator Philox under
that key, and the token is found by inverting the cumulative distribution. An answer then depends on the model, the
request and the seed, and models that differ little mostly draw the same tokens (common random numbers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from evaluators.errors import MeasurementFailed
from evaluators.evaluation import FailureKind

_DEFAULTS: Mapping[str, Any] = {"temperature": 1.0, "top_k": 50}  # transformers' own, the rest is off
_BITS = 48  # of a number in [0, 1): times any sum of probabilities it stays below that sum in float64
_FIRST_NUMBERS = 64  # made at once for a row; doubled when an answer is longer


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled; what is None is the model's generation config's, else transformers' default."""

    temperature: float
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None


OPTIONS = frozenset(Sampling.__dataclass_fields__)


def is_sampled(options: Mapping[str, Any]) -> bool:
    """Whether lm-eval samples with a task's ``generation_kwargs``."""
    return bool(normalize_gen_kwargs(dict(options))["do_sample"])


def sampling_of(options: Mapping[str, Any]) -> Sampling | None:
    """Return the sampling that an lm-eval task's normalised `generation_kwargs` ask for, None for greedy decoding."""
    if not options.get("do_sample"):
        return None
    return Sampling(**{name: options[name] for name in OPTIONS & set(options)})


def warpers_of(sampling: Sampling, config: Any, device: torch.device) -> LogitsProcessorList:
    """Return transformers' own warpers in its order; ``config`` is the model's generation config.

    Raises:
        MeasurementFailed: the config has a setting for sampling that is not supported.
    """
    if (top_h := getattr(config, "top_h", None)) is not None:
        raise MeasurementFailed(
            FailureKind.EXCEPTION, f"the model's generation_config has top_h={top_h}, which is not supported; remove it"
        )

    def setting(name: str) -> Any:
        values = (getattr(sampling, name), getattr(config, name, None), _DEFAULTS.get(name))
        return next((value for value in values if value is not None), None)

    warpers = LogitsProcessorList()
    if (temperature := setting("temperature")) != 1.0:
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k := setting("top_k"):
        warpers.append(TopKLogitsWarper(int(top_k)))
    if (top_p := setting("top_p")) is not None and top_p < 1.0:
        warpers.append(TopPLogitsWarper(float(top_p)))
    if (min_p := setting("min_p")) is not None:
        warpers.append(MinPLogitsWarper(float(min_p)))
    if (mass := setting("typical_p")) is not None and mass < 1.0:
        warpers.append(TypicalLogitsWarper(float(mass)))
    if (epsilon := setting("epsilon_cutoff")) is not None and 0.0 < epsilon < 1.0:
        warpers.append(EpsilonLogitsWarper(float(epsilon)))
    if (epsilon := setting("eta_cutoff")) is not None and 0.0 < epsilon < 1.0:
        warpers.append(EtaLogitsWarper(float(epsilon), device=str(device)))
    return warpers


def request_key(seed: int, task: str, document: str, request: int, repeat: int) -> int:
    """Return the 128-bit key of one answer: of ``repeat`` to ``request`` of the document with digest ``document``."""
    text = f"{seed}\0{task}\0{document}\0{request}\0{repeat}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


class Sampler:
    """Draws the next tokens of those rows of a batch that are sampled in one way; ``keys`` are by row."""

    def __init__(self, warpers: LogitsProcessorList, keys: Mapping[int, int]) -> None:
        self._warpers, self._keys = warpers, keys
        self._rows = torch.tensor(list(keys))
        self._numbers = torch.empty(len(keys), 0, dtype=torch.float64)

    def choose(self, chosen: torch.Tensor, logits: torch.Tensor, *, going: torch.Tensor, step: int) -> None:
        """Write the tokens of step ``step`` into ``chosen`` (running,) at the places of the sampler's rows.

        Args:
            logits: (running, vocabulary) float32, processed but not warped; left as they are.
            going: (running,) int64, the row of the batch that each running one is.
        """
        places, mine = torch.nonzero(going[:, None] == self._rows, as_tuple=True)
        if not len(places):
            return
        here = places.to(logits.device)
        # none of the warpers looks at the tokens before
        scores = self._warpers(here[:, None], logits[here])  # type: ignore[arg-type]
        chosen[here] = draw(scores, self._at(step)[mine])

    def _at(self, step: int) -> torch.Tensor:
        known = self._numbers.shape[1]
        if step >= known:
            count = max(_FIRST_NUMBERS, 2 * known)
            self._numbers = torch.stack([uniforms(key, count) for key in self._keys.values()])
        return self._numbers[:, step]


def uniforms(key: int, count: int) -> torch.Tensor:
    """Return the first ``count`` numbers of ``key``: (count,) float64 in [0, 1)."""
    words = np.random.Philox(key=key).random_raw(count)  # unlike Generator's methods, fixed over versions of NumPy
    return torch.from_numpy((words >> np.uint64(64 - _BITS)).astype(np.float64) * 2.0**-_BITS)


def draw(scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return the tokens (rows,) that ``numbers`` (rows,) in [0, 1) mean under softmax(``scores``) (rows, vocabulary).

    A token of probability 0 is never drawn.
    """
    cumulative = torch.softmax(scores, dim=-1).double().cumsum(-1)
    places = (numbers.to(cumulative.device) * cumulative[:, -1])[:, None]
    return torch.searchsorted(cumulative, places, right=True).squeeze(1)
