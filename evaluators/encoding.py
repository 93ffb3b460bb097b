"""Prompts and tokens by lm-eval's own rules, without a model.

`Encoder` is lm-eval's HFLM with the forward pass taken out: token boundaries between context and continuation, empty
contexts, special tokens, chat templates and rolling windows are HFLM's code, and what it would have sent to the
model is kept.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import configure_pad_token, handle_stop_sequences, normalize_gen_kwargs

from evaluators.errors import TaskError
from evaluators.sampling import Sampling, sampling_of

_ALL_AT_ONCE = 1 << 30


@dataclass(frozen=True)
class Window:
    """Tokens to be scored after their context; together they fit the model."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """Tokens to be continued until one of the strings `until` appears or `max_new_tokens` are there.

    Attributes:
        cut: how many tokens were left out at the beginning, for the answer to fit.
        sampling: None for greedy decoding; `key` is then 0, otherwise the key of this answer's draws.
    """

    tokens: tuple[int, ...]
    until: tuple[str, ...]
    max_new_tokens: int
    cut: int = 0
    sampling: Sampling | None = None
    key: int = 0


class Encoder(HFLM):  # type: ignore[misc]
    """HFLM's text handling. The tokenizer is copied: lm-eval adds a padding token to it.

    Raises:
        TaskError: the tokenizer has no end-of-sequence token, which lm-eval's rules need.
    """

    def __init__(self, tokenizer: Any, *, max_length: int) -> None:
        if tokenizer.eos_token_id is None:
            raise TaskError("the tokenizer has no end-of-sequence token (eos_token); set one in its configuration")
        TemplateLM.__init__(self)  # HFLM's own wants a model
        self.backend = "causal"
        self.tokenizer = configure_pad_token(copy.deepcopy(tokenizer))
        self.add_bos_token = None
        self.custom_prefix_token_id = None
        self.truncation = False
        self.chat_template_args: dict[str, Any] = {}
        self.enable_thinking = None
        self.batch_size_per_gpu = _ALL_AT_ONCE
        self._max_length = max_length
        self._windows: list[Window] = []

    def windows(self, instance: Instance) -> tuple[Window, ...]:
        """Return what HFLM would score for a log-likelihood request: one window, or the rolling ones of a text."""
        self._windows = []
        getattr(self, instance.request_type)([instance], disable_tqdm=True)
        return tuple(self._windows)

    def prompt(self, instance: Instance) -> Prompt:
        """Return what HFLM would generate from for a request alone in its batch.

        Raises:
            ValueError: the answer alone would fill the model's context, or the prompt has no tokens.
        """
        text, options = instance.args
        options = normalize_gen_kwargs(options, self.max_gen_toks)
        end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        longest = int(options["max_gen_toks"])
        if longest >= self.max_length:
            raise ValueError(f"max_gen_toks is {longest}, but the model's context has {self.max_length} tokens")
        tokens = tuple(self.tok_batch_encode([text])[0][0].tolist())
        if not tokens:
            raise ValueError("the prompt has no tokens; a model needs at least one to continue")
        kept = tokens[-(self.max_length - longest) :]
        until = handle_stop_sequences(list(options["until"]), eos=end)
        return Prompt(kept, tuple(until), longest, cut=len(tokens) - len(kept), sampling=sampling_of(options))

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        for _, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length or not context:
                raise ValueError(
                    f"the answer has {len(continuation)} tokens after {len(context)} of context; "
                    f"it needs 1 to {self.max_length} after at least 1"
                )
            self._windows.append(Window(tuple(context), tuple(continuation)))
        return [(0.0, True)] * len(requests)
