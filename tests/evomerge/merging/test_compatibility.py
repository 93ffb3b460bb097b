import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import BadSource
from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.compatibility import check, mergeable_names, ties_embeddings


@pytest.fixture
def pair(family: list[Path], tmp_path: Path) -> tuple[Path, Path]:
    return family[0], Path(shutil.copytree(family[1], tmp_path / "expert"))


def refused(pair: tuple[Path, Path], match: str) -> None:
    first, other = (Checkpoint.open(folder) for folder in pair)
    with pytest.raises(BadSource, match=match):
        check([first, other], mergeable_names(first))


def change(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(folder: Path, **tensors: torch.Tensor | None) -> None:
    values = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor is None:
            del values[name]
        else:
            values[name] = tensor
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_family_is_compatible(checkpoints: list[Checkpoint]) -> None:
    check(checkpoints, mergeable_names(checkpoints[0]))


def test_architecture(pair: tuple[Path, Path]) -> None:
    change(pair[1], model_type="mistral")
    refused(pair, "architecture is 'mistral'.*'llama'")


def test_heads(pair: tuple[Path, Path]) -> None:
    change(pair[1], num_attention_heads=8)
    refused(pair, "num_attention_heads is 8.*4")


def test_missing_tensor(pair: tuple[Path, Path]) -> None:
    rewrite(pair[1], **{"model.norm.weight": None})
    refused(pair, r"lacks 1 tensors.*model\.norm\.weight")


def test_extra_tensor(pair: tuple[Path, Path]) -> None:
    rewrite(pair[1], **{"model.extra.weight": torch.zeros(3)})
    refused(pair, r"has besides 1 tensors.*model\.extra\.weight")


def test_shapes_are_both_named(pair: tuple[Path, Path]) -> None:
    rewrite(pair[1], **{"model.norm.weight": torch.zeros(7)})
    refused(pair, r"model\.norm\.weight.*\[7\].*\[32\]")


def test_rows_of_the_embeddings(pair: tuple[Path, Path]) -> None:
    rewrite(pair[1], **{"model.embed_tokens.weight": torch.zeros(50, 32)})
    refused(pair, "50 rows.*48.*sources.vocabulary in a search file")


def test_tokens(pair: tuple[Path, Path]) -> None:
    file = pair[1] / "tokenizer.json"
    value = json.loads(file.read_text())
    value["model"]["vocab"]["other"] = value["model"]["vocab"].pop("w9")
    file.write_text(json.dumps(value))
    refused(pair, "tokenizer differs.*2 tokens, first 'other'")


def test_same_tokens_written_differently_are_compatible(pair: tuple[Path, Path]) -> None:
    file = pair[1] / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=7))
    first, other = (Checkpoint.open(folder) for folder in pair)
    check([first, other], mergeable_names(first))


def test_vocabulary_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    first = Path(shutil.copytree(pair[0], tmp_path / "first"))
    for number, folder in enumerate((first, pair[1])):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(bytes([number]))
    refused((first, pair[1]), r"files tokenizer\.model")


def test_tied_and_untied(pair: tuple[Path, Path]) -> None:
    change(pair[1], tie_word_embeddings=True)
    rewrite(pair[1], **{"lm_head.weight": None})
    refused(pair, r"\(tied\).*\(untied\)")


def test_stored_copy_of_a_tied_head_is_left_out(pair: tuple[Path, Path]) -> None:
    change(pair[1], tie_word_embeddings=True)
    embeddings = load_file(pair[1] / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(pair[1], **{"lm_head.weight": embeddings.clone()})
    checkpoint = Checkpoint.open(pair[1])
    assert ties_embeddings(checkpoint)
    assert set(checkpoint.names) - set(mergeable_names(checkpoint)) == {"lm_head.weight"}


def test_tied_head_that_differs(pair: tuple[Path, Path]) -> None:
    change(pair[1], tie_word_embeddings=True)
    with pytest.raises(BadSource, match="two different matrices"):
        mergeable_names(Checkpoint.open(pair[1]))
