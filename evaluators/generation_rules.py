"""What a model's own generation config does to greedy decoding.

`transformers` applies it whenever text is generated, so lm-eval's answers depend on it: end tokens and the repetition
penalty are followed, other settings that change a greedy answer are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from evaluators.errors import MeasurementFailed
from evaluators.evaluation import FailureKind

# setting: the values that change nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "bad_words_ids": (None, []),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}, []),
    "guidance_scale": (None, 1, 1.0),
    "penalty_alpha": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "stop_strings": (None, []),
    "watermarking_config": (None,),
}


@dataclass(frozen=True)
class GenerationRules:
    """The model's end-of-sequence tokens, and what it does to logits before the largest is taken."""

    end_tokens: frozenset[int]
    processors: LogitsProcessorList | None


def rules_of(model: Any) -> GenerationRules:
    """Return the rules in ``model.generation_config``.

    Raises:
        MeasurementFailed: it has settings that greedy decoding would follow and this release does not.
    """
    config = model.generation_config
    strange = {
        name: value for name, neutral in _NEUTRAL.items() if (value := getattr(config, name, None)) not in neutral
    }
    if strange:
        raise MeasurementFailed(
            FailureKind.EXCEPTION,
            f"the model's generation_config has settings that are not supported: {strange}; remove them",
        )
    end = config.eos_token_id
    end_tokens = frozenset(() if end is None else [end] if isinstance(end, int) else end)
    penalty = getattr(config, "repetition_penalty", None)
    if penalty in (None, 1.0):
        return GenerationRules(end_tokens, None)
    return GenerationRules(end_tokens, LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)]))
