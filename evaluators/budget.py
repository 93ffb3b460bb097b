"""How many tokens one forward pass computes, when the search file leaves it to us."""

from __future__ import annotations

from typing import Any

from evaluators.objective import EvaluationSettings

# A fixed rule, not a measurement at the start: scores must have equal bits on every worker and after a resume, and
# the shapes of the batches are part of what makes the bits. The number for CPUs was measured on the demo's model
# (benchmarks/evaluation.py --only budget; docs/evaluation.md), those for GPUs were not yet.
_TOKENS = {"cpu": 4096, "cuda": 32_768}
_FALLBACK = 8192
# elements of the widest activation of a pass: beyond, memory is the limit on a GPU, and the caches on a CPU
_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 29}
_FEWEST = 512


def tokens_per_batch(settings: EvaluationSettings, model: Any) -> int:
    """Return the padded tokens of one forward pass: the setting, or what suits ``model`` and the kind of its device.

    The rule looks at the device's kind and the width of the model only, so it says the same everywhere.
    """
    if settings.tokens_per_batch != "auto":
        return settings.tokens_per_batch
    kind = model.device.type
    config = model.config.get_text_config(decoder=True)
    width: int = max(config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    most = _ELEMENTS.get(kind, _ELEMENTS["cuda"]) // width
    return max(_FEWEST, min(_TOKENS.get(kind, _FALLBACK), 1 << (most.bit_length() - 1)))
