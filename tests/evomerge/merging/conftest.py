"""Tiny Llama checkpoints: a base and three experts, each the base plus small noise, with a small tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from search_spaces.operators import Operator
from search_spaces.recipe import Block, Blocks, Recipe, Source

LAYERS = 4
VOCABULARY = 48
Maker = Callable[..., list[Path]]


def save_tokenizer(
    folder: Path, *, words: int = VOCABULARY, order: Sequence[str] = (), added: Sequence[str] = ()
) -> None:
    """Write a tokenizer of so many words, or of ``order``, with special tokens ``added``."""
    listed = order or [f"w{i}" for i in range(4, words)]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *listed])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in added], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def llama_config(**changes: object) -> transformers.PretrainedConfig:
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    return transformers.LlamaConfig(**(settings | changes))


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Return a maker of folders: the first holds the base, the others base + a common shift + noise of its own."""

    def make(
        config: transformers.PretrainedConfig | None = None,
        *,
        experts: int = 3,
        dtype: torch.dtype = torch.float32,
        noise: float = 0.01,
        common: float = 0.0,
    ) -> list[Path]:
        root = tmp_path_factory.mktemp("family")
        generator = torch.Generator().manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(config or llama_config(), dtype=torch.float32)
        start = {name: torch.randn(p.shape, generator=generator) * 0.05 for name, p in model.named_parameters()}
        others = torch.Generator().manual_seed(8)
        shared = {name: torch.randn(value.shape, generator=others) * common for name, value in start.items()}
        folders = []
        for number in range(experts + 1):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    shift = torch.randn(parameter.shape, generator=generator) * noise + shared[name] if number else 0.0
                    parameter.copy_(start[name] + shift)
            folder = root / (f"expert{number}" if number else "base")
            model.to(dtype).save_pretrained(folder)
            model.to(torch.float32)
            save_tokenizer(folder)
            folders.append(folder)
        return folders

    return make


@pytest.fixture(scope="session")
def strangers(make_family: Maker) -> list[Path]:
    """A base, an expert with two tokens more, and one with another order, one token more and padded embeddings."""
    words = [f"w{i}" for i in range(4, VOCABULARY)]
    tokenizers = [
        {"order": words},
        {"order": words, "added": ["<tool>", "both"]},
        {"order": [*words[::-1], "both", "other"]},
    ]
    folders = []
    for number, settings in enumerate(tokenizers):
        rows = 4 + len(settings["order"]) + len(settings.get("added", ())) + (3 if number == 2 else 0)
        folder = make_family(llama_config(vocab_size=rows), experts=number, noise=0.02)[number]
        save_tokenizer(folder, **settings)
        folders.append(folder)
    return folders


@pytest.fixture(scope="session")
def family(make_family: Maker) -> list[Path]:
    """Folders of a float32 base and three experts."""
    return make_family()


@pytest.fixture(scope="session")
def checkpoints(family: list[Path]) -> list[Checkpoint]:
    return [Checkpoint.open(folder) for folder in family]


@pytest.fixture(scope="session")
def engine(checkpoints: list[Checkpoint]) -> MergeEngine:
    return MergeEngine(checkpoints, names=checkpoints[0].names)


@pytest.fixture(scope="session")
def recipe_of(family: list[Path]) -> Callable[..., Recipe]:
    """Return a maker of recipes over `family`: one operator for everything, or a list of blocks."""

    def make(what: Operator | list[Block], *, dtype: str = "float32", seed: int = 0, **changes: object) -> Recipe:
        blocks = tuple(what) if isinstance(what, list) else (Block(layers=(0, LAYERS), operator=what),)
        sources = tuple(Source(path=str(folder)) for folder in family)
        values = {"sources": sources, "dtype": dtype, "body": Blocks(blocks=blocks, mask_seed=seed)}
        return Recipe(**(values | changes))

    return make
