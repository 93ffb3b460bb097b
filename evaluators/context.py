"""How many tokens a model can take."""

from __future__ import annotations

from typing import Any

FALLBACK = 2048  # lm-eval's own, for models that do not say
UNSET = 10**9  # tokenizers without a limit carry a huge number


def context_length(config: Any, tokenizer: Any) -> int:
    """Return the context window in tokens, found where lm-eval's hf backend looks: config, then tokenizer."""
    text = config.get_text_config(decoder=True)
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (value := getattr(text, name, None)) is not None:
            return int(value)
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < UNSET else FALLBACK
