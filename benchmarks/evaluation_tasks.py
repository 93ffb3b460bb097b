"""Models, tasks and documents of evaluation.py: made on the spot, the same for both sides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml


@dataclass(frozen=True)
class Shape:
    """A task's prompts: words of question and choice (or answer), few-shot examples, documents."""

    name: str
    question: int = 16
    choice: int = 16
    shots: int = 0
    fixed: bool = True
    choices: int = 4
    generates: bool = False
    documents: int = 64


def write_tasks(folder: Path, shapes: Sequence[Shape], words: list[str]) -> None:
    """Write a task file and its documents for each of ``shapes`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)

    def text(count: int) -> str:
        return " ".join(generator.choice(words, count))

    for shape in shapes:
        files = {}
        for split, count in (("test", shape.documents), ("train", max(shape.shots, 8) * 2)):
            rows = [
                {
                    "question": text(int(generator.integers(shape.question // 2, shape.question + 1))),
                    "choices": [text(shape.choice) for _ in range(shape.choices)],
                    "gold": int(generator.integers(shape.choices)),
                }
                for _ in range(count)
            ]
            path = folder / f"{shape.name}.{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[split] = str(path)
        (folder / f"{shape.name}.yaml").write_text(yaml.safe_dump(_config(shape, files)))


def _config(shape: Shape, files: dict[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "task": shape.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "training_split": "train",
        "fewshot_split": "train",
        "num_fewshot": shape.shots,
        "fewshot_config": {"sampler": "first_n" if shape.fixed else "default"},
        "doc_to_text": "{{question}}",
        "target_delimiter": " ",
        "fewshot_delimiter": " ",
    }
    if shape.generates:
        return {
            **config,
            "output_type": "generate_until",
            "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": {"until": ["<eos>"], "do_sample": False, "max_gen_toks": shape.choice},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    return {
        **config,
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def write_model(folder: Path, *, words: int = 31_990) -> Path:
    """Write a Llama of 110 M random parameters (85 M without embeddings, which are tied) and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", "<bos>", "<eos>", *made_up(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def made_up(count: int) -> list[str]:
    """Return ``count`` words, each one token."""
    return [f"w{number}" for number in range(count)]
