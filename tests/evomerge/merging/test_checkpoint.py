import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import BadSource
from evomerge.merging.checkpoint import Checkpoint


@pytest.fixture
def folder(family: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(family[0], tmp_path / "model"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def shard(folder: Path) -> None:
    """Split the single file into two shards with an index."""
    tensors = weights(folder)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, members in parts.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def test_tensors_are_those_of_the_file(folder: Path) -> None:
    checkpoint, expected = Checkpoint.open(folder), weights(folder)
    assert checkpoint.names == tuple(sorted(expected))
    assert sorted(checkpoint.order) == list(checkpoint.names)
    assert checkpoint.bytes == sum(tensor.nbytes for tensor in expected.values())
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.info(name).shape == tuple(tensor.shape)
        assert checkpoint.info(name).dtype is tensor.dtype
    assert checkpoint.layers == 4


def test_tensors_of_one_file_lie_in_one_mapping(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    storages = {checkpoint.tensor(name).untyped_storage().data_ptr() for name in checkpoint.names}
    assert len(storages) == 1


def test_shards_give_the_same_tensors(folder: Path) -> None:
    expected = weights(folder)
    shard(folder)
    checkpoint = Checkpoint.open(folder)
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in expected.items())
    assert checkpoint.names == tuple(sorted(expected))


def test_writing_into_a_view_does_not_change_the_file(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    name = checkpoint.names[0]
    before = weights(folder)[name]
    checkpoint.tensor(name).zero_()
    assert torch.equal(weights(folder)[name], before)


def test_nested_text_config_gives_the_layers(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({"model_type": "x", "text_config": json.loads(file.read_text())}))
    assert Checkpoint.open(folder).layers == 4


def test_tables_that_models_compute_themselves_are_left_out(folder: Path) -> None:
    tensors = weights(folder)
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    mask = {"model.layers.0.attn.bias": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}
    save_file(tensors | table | mask, folder / "model.safetensors")
    assert Checkpoint.open(folder).names == tuple(sorted(tensors))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match="no such model folder"):
        Checkpoint.open(tmp_path / "nowhere")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(BadSource, match=r"no config\.json"):
        Checkpoint.open(folder)


def test_adapter_folder(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(BadSource, match="LoRA adapter"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_config_that_is_not_an_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(BadSource, match=r"config\.json"):
        Checkpoint.open(folder)


def test_config_without_layers(folder: Path) -> None:
    change_config(folder, num_hidden_layers=None)
    with pytest.raises(BadSource, match="how many layers"):
        Checkpoint.open(folder)


def test_quantised(folder: Path) -> None:
    change_config(folder, quantization_config={"bits": 4})
    with pytest.raises(BadSource, match="quantised"):
        Checkpoint.open(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadSource, match=r"neither model\.safetensors"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "weights.pt"])
def test_only_pickles(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(BadSource, match=r"pickle.*save_pretrained"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("keep", [4, 100, -10])
def test_truncated(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BadSource, match="truncated or not safetensors"):
        Checkpoint.open(folder)


def test_index_that_is_no_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BadSource, match="not a safetensors index"):
        Checkpoint.open(folder)


def test_missing_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadSource, match=r"model-00002-of-00002\.safetensors.*missing"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("where", ["../other.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_shards_stay_inside_the_folder(folder: Path, where: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": where}}))
    with pytest.raises(BadSource, match="inside the folder"):
        Checkpoint.open(folder)


def test_index_that_promises_too_much(folder: Path) -> None:
    shard(folder)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.ghost"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))
    with pytest.raises(BadSource, match=r"model\.ghost"):
        Checkpoint.open(folder)


def test_tensor_in_two_shards(folder: Path) -> None:
    tensors = weights(folder)
    shard(folder)
    save_file(tensors, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(BadSource, match="two shards"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.float64])
def test_unsupported_dtype(folder: Path, dtype: torch.dtype) -> None:
    tensors = weights(folder)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadSource, match=r"model\.norm\.weight.*F32, BF16, F16"):
        Checkpoint.open(folder)


def test_unknown_tensor(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(BadSource, match="no tensor 'ghost'"):
        checkpoint.tensor("ghost")
