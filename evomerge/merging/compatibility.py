"""Which tensors of a checkpoint are merged, and whether a set of checkpoints can be merged at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import BadSource
from evomerge.foreign import read_json
from evomerge.merging.aligned import Aligned
from evomerge.merging.checkpoint import Checkpoint, text_config

_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_POLICY = (
    "Say which tokens the merged model has: sources.vocabulary in a search file (union, base or an expert's name), "
    "tokenizer_source in a mergekit config, vocabulary in a recipe"
)
_SAME_MEANING = ("num_attention_heads", "num_key_value_heads", "head_dim", "n_head")
_VOCABULARY_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")


def mergeable_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the tensors that a merge of this architecture writes, in the order of the file.

    A head that is stored although the config ties it to the embeddings is left out.

    Raises:
        BadSource: the stored head differs from the embeddings that it is tied to.
    """
    if not ties_embeddings(checkpoint):
        return checkpoint.order
    heads = [name for name in checkpoint.order if name in _HEADS]
    for head in heads:
        _check_copy(checkpoint, head)
    return tuple(name for name in checkpoint.order if name not in heads)


def ties_embeddings(checkpoint: Checkpoint) -> bool:
    """Whether the model's head is its embedding matrix, by its config or its architecture's default."""
    written = text_config(checkpoint.config).get("tie_word_embeddings", checkpoint.config.get("tie_word_embeddings"))
    if written is not None:
        return bool(written)
    if any(name in _HEADS for name in checkpoint.names):
        return False  # stored apart, and nothing says that they are one
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint.home, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise BadSource(f"{checkpoint.home}: transformers cannot read config.json ({_first_line(error)})") from None
    return bool(config.get_text_config(decoder=True).tie_word_embeddings)


def check(checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> None:
    """Check that every one of ``checkpoints`` holds the tensors ``names`` of the first, with the same meaning.

    Raises:
        BadSource: architectures, tensors, shapes, heads, ties or vocabularies differ.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        _check_architecture(first, other)
        _check_tensors(first, other, names)
        _check_vocabulary(first, other)


def _check_architecture(first: Checkpoint, other: Checkpoint) -> None:
    ours, theirs = first.config.get("model_type"), other.config.get("model_type")
    if ours != theirs:
        raise BadSource(f"{other.path}: its architecture is {theirs!r}, that of {first.path} is {ours!r}")
    if ties_embeddings(first) != ties_embeddings(other):
        tied, untied = (first, other) if ties_embeddings(first) else (other, first)
        raise BadSource(
            f"{tied.path} uses its embeddings as head (tied), {untied.path} has a head of its own (untied); "
            "a merge would lose one of the two: untie the first and save it again"
        )
    mine, its = text_config(first.config), text_config(other.config)
    for key in _SAME_MEANING:
        if key in mine and key in its and mine[key] != its[key]:
            raise BadSource(f"{other.path}: {key} is {its[key]}, in {first.path} it is {mine[key]}")


def _check_tensors(first: Checkpoint, other: Checkpoint, names: Sequence[str]) -> None:
    theirs = set(mergeable_names(other))
    missing = [name for name in names if name not in theirs]
    extra = sorted(theirs - set(names))
    if missing or extra:
        what, which = ("lacks", missing) if missing else ("has besides", extra)
        raise BadSource(f"{other.path}: {what} {len(which)} tensors compared with {first.path}, first {which[0]!r}")
    for name in names:
        ours, its = first.info(name).shape, other.info(name).shape
        if ours == its:
            continue
        if ours[1:] == its[1:] and any(part in name for part in ("embed", "wte", "lm_head")):
            raise BadSource(
                f"{other.path}: {name!r} has {its[0]} rows, in {first.path} {ours[0]}: the vocabularies differ. "
                f"{_POLICY}"
            )
        raise BadSource(f"{other.path}: {name!r} has shape {list(its)}, in {first.path} {list(ours)}")


def _check_vocabulary(first: Checkpoint, other: Checkpoint) -> None:
    if isinstance(first, Aligned):
        return
    ours, theirs = first.path / "tokenizer.json", other.path / "tokenizer.json"
    if ours.is_file() and theirs.is_file():
        if ours.read_bytes() == theirs.read_bytes():
            return
        mine, its = _vocabulary(ours), _vocabulary(theirs)
        different = sorted(token for token in mine.keys() | its.keys() if mine.get(token) != its.get(token))
        if different:
            raise _vocabulary_differs(first, other, f"{len(different)} tokens, first {different[0]!r}")
        return
    for name in _VOCABULARY_FILES:
        ours, theirs = first.path / name, other.path / name
        if ours.is_file() and theirs.is_file() and ours.read_bytes() != theirs.read_bytes():
            raise _vocabulary_differs(first, other, f"the files {name}")


def _vocabulary_differs(first: Checkpoint, other: Checkpoint, what: str) -> BadSource:
    return BadSource(f"{other.path}: its tokenizer differs from that of {first.path} ({what}). {_POLICY}")


def _vocabulary(file: Path) -> dict[str, int]:
    """Return token -> id of a tokenizer.json, added tokens included."""
    try:
        value: dict[str, Any] = read_json(file)
        vocabulary = value["model"]["vocab"]
        added = {entry["content"]: int(entry["id"]) for entry in value.get("added_tokens") or []}
        if isinstance(vocabulary, list):  # unigram models list [token, score] in the order of the ids
            vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
        return {**vocabulary, **added}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadSource(f"{file}: not a tokenizer file ({type(error).__name__}: {error})") from None


def _check_copy(checkpoint: Checkpoint, head: str) -> None:
    head_info = checkpoint.info(head)
    for name in checkpoint.order:
        if name != head and checkpoint.info(name).shape == head_info.shape and "embed" in name:
            if torch.equal(checkpoint.tensor(name), checkpoint.tensor(head)):
                return
            raise BadSource(
                f"{checkpoint.path}: config.json ties {head!r} to {name!r}, but the file holds two different "
                "matrices; set tie_word_embeddings to what is meant and save the model again"
            )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
