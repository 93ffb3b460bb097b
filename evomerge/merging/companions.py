"""The files beside the weights of a checkpoint: tokenizer, chat template, generation settings."""

from __future__ import annotations

import shutil
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)
_OF_TOKENIZER = (
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "*.tiktoken",
    "*.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
_PATTERNS = ("generation_config.json", *_OF_TOKENIZER)


def companions(folder: Path) -> list[Path]:
    """Return those files and folders of the model in ``folder``, in order."""
    return sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)})


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of the tokenizer in ``folder``, chat templates included, in order."""
    found = {file for pattern in _OF_TOKENIZER for path in folder.glob(pattern) for file in (path, *path.glob("*"))}
    return sorted(file for file in found if file.is_file())


def copy_companions(folder: Path, to: Path) -> None:
    """Copy them into the folder ``to``."""
    for path in companions(folder):
        if path.is_dir():
            shutil.copytree(path, to / path.name)
        else:
            shutil.copyfile(path, to / path.name)
