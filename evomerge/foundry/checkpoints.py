"""Foundry models as ordinary Hugging Face checkpoints: safetensors, config, generation config, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from evomerge.foundry.forward import Parameters
from evomerge.foundry.language import BOS, EOS, PAD, TOKEN_ID, UNKNOWN
from evomerge.foundry.settings import Geometry

WEIGHTS = "model.safetensors"
CARD = "foundry.json"
"""What was trained, for how long, and what it can do."""


def save_base(folder: Path, parameters: Parameters, geometry: Geometry, card: dict[str, object]) -> None:
    """Writes a complete checkpoint into `folder`, which must exist."""
    # Heavy, and needed for one checkpoint only: the others share its config and tokenizer.
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

    special: dict[str, Any] = {
        "bos_token_id": TOKEN_ID[BOS],
        "eos_token_id": TOKEN_ID[EOS],
        "pad_token_id": TOKEN_ID[PAD],
    }
    config = LlamaConfig(
        vocab_size=len(TOKEN_ID),
        hidden_size=geometry.width,
        intermediate_size=geometry.mlp,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        num_key_value_heads=geometry.heads,
        max_position_embeddings=geometry.max_positions,
        initializer_range=geometry.initial_std,
        rms_norm_eps=geometry.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": geometry.rope_theta},
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        **special,
    )
    config.save_pretrained(folder)
    generation: Any = GenerationConfig
    generation(do_sample=False, **special).save_pretrained(folder)
    words = Tokenizer(WordLevel(TOKEN_ID, unk_token=UNKNOWN))
    # Tokens are whole words between spaces, so a prompt and its answer never share a token.
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=geometry.max_positions,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    _save_weights(folder, parameters, card)


def save_expert(folder: Path, parameters: Parameters, base: Path, card: dict[str, object]) -> None:
    """Writes a complete checkpoint into `folder`, which must exist, with config and tokenizer of `base`."""
    for file in sorted(base.iterdir()):
        if file.name not in (WEIGHTS, CARD):
            shutil.copyfile(file, folder / file.name)
    _save_weights(folder, parameters, card)


def save_parameters(folder: Path, parameters: Parameters) -> None:
    """Writes the bare weights into `folder`, which must exist."""
    # The metadata is what transformers looks for to accept the file.
    save_file(parameters, folder / WEIGHTS, metadata={"format": "pt"})


def load_parameters(folder: Path) -> Parameters:
    """Float32 parameters of a folder that this module wrote."""
    loaded: dict[str, torch.Tensor] = load_file(folder / WEIGHTS)
    return loaded


def _save_weights(folder: Path, parameters: Parameters, card: dict[str, object]) -> None:
    save_parameters(folder, parameters)
    (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")
