"""Log-likelihoods of all scored requests of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from evaluators.errors import MeasurementFailed
from evaluators.evaluation import FailureKind
from evaluators.head import head_on
from evaluators.memory import Room, in_halves
from evaluators.meter import Meter
from evaluators.packing import Batch, Row, collate

# families whose attention takes a 4-D mask and explicit positions; each is checked against plain scoring in the tests
_BRANCHING = ("gpt_neox", "granite", "llama", "mistral", "olmo", "phi3", "qwen2", "qwen3")


class LogLikelihoods(NamedTuple):
    """Of each request: (requests,) float64 in nats, and (requests,) bool whether greedy decoding says the same."""

    values: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]


def can_branch(model: Any) -> bool:
    """Whether the choices of a question may share their context in one row for this model."""
    config = model.config
    full = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
    slides = getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None)
    plain = getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
    return config.model_type in _BRANCHING and full and not slides and plain


def score(
    model: Any, batches: Sequence[Batch], *, requests: int, meter: Meter, room: Room | None = None
) -> LogLikelihoods:
    """Return the log-likelihoods of ``requests`` numbered requests; call under `torch.inference_mode`.

    Args:
        room: how large a batch may be, as far as earlier calls have learnt.

    Raises:
        MeasurementFailed: a logit is not finite, or the deadline has passed.
    """
    # added up on the CPU: in double precision, and in one order also where a GPU would add atomically
    values = torch.zeros(requests, dtype=torch.float64)
    misses = torch.zeros(requests, dtype=torch.int64)

    room = room or Room()

    for batch in batches:
        meter.check_deadline()
        in_halves(
            batch.rows,
            lambda rows, whole=batch: _score_batch(  # type: ignore[misc]
                model, whole if rows is whole.rows else collate(rows), values, misses, meter
            ),
            room=room,
            size=_padded_tokens,
        )
    if not bool(torch.isfinite(values).all()):
        raise MeasurementFailed(FailureKind.NON_FINITE, "log-likelihoods are NaN or infinite")
    return LogLikelihoods(values.numpy(), (misses == 0).numpy())


def _padded_tokens(rows: Sequence[Row]) -> int:
    return len(rows) * max(len(row.tokens) for row in rows)


def _score_batch(model: Any, batch: Batch, values: torch.Tensor, misses: torch.Tensor, meter: Meter) -> None:
    device = model.device
    places, targets = batch.places.to(device), batch.targets.to(device)
    options: dict[str, torch.Tensor] = {}
    if batch.visible is not None and batch.positions is not None:
        hidden = torch.zeros(batch.visible.shape, dtype=model.dtype, device=device)
        options["attention_mask"] = hidden.masked_fill_(~batch.visible.to(device), torch.finfo(model.dtype).min)
        options["position_ids"] = batch.positions.to(device)

    def choose(states: torch.Tensor) -> torch.Tensor:
        return states.reshape(1, -1, states.shape[-1]).index_select(1, places)

    with meter.forward(batch.tokens), head_on(model, choose) as chosen:
        logits = chosen(model(input_ids=batch.ids.to(device), use_cache=False, **options).logits)
    logits = logits[0].float()
    picked = logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(-1)
    missed = (logits.argmax(-1) != targets).long()
    # added last: a batch that runs out of memory above is run again in halves
    values.index_add_(0, batch.requests, picked.cpu().double())
    misses.index_add_(0, batch.requests, missed.cpu())
