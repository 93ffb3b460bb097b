import os
import shutil
from pathlib import Path

import pytest

from evomerge.errors import BadSource
from evomerge.merging.sources import cache_folder, fingerprint, pin, resolve, tokenizer_fingerprint, verify
from search_spaces.recipe import Source


@pytest.fixture
def folder(family: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(family[0], tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(1, 1))  # a time of modification that differs whatever the clock's resolution


def test_resolve_takes_a_folder(folder: Path) -> None:
    assert resolve(str(folder)) == folder.resolve()


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "a/b/c", "~/nowhere/at/all"])
def test_resolve_refuses_a_missing_folder(path: str) -> None:
    with pytest.raises(BadSource, match="no such model folder"):
        resolve(path)


def test_resolve_says_what_to_do_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadSource, match=r"nobody/nothing@main.*hf download"):
        resolve("nobody/nothing", "main")


def test_fingerprint_depends_on_weights_and_config_only(folder: Path, cache: Path) -> None:
    first = fingerprint(folder)
    (folder / "README.md").write_text("hello")
    assert fingerprint(folder) == first
    spoil(folder / "model.safetensors")
    second = fingerprint(folder)
    spoil(folder / "config.json")
    assert len({first, second, fingerprint(folder)}) == 3


def test_the_tokenizer_has_a_fingerprint_of_its_own(folder: Path, cache: Path, tmp_path: Path) -> None:
    weights = fingerprint(folder)
    bare = tmp_path / "bare"
    bare.mkdir()
    assert tokenizer_fingerprint(bare) is None
    found = []
    for file in ("tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tools.jinja"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text('{"a": 1}')
        found.append(tokenizer_fingerprint(folder))
    (folder / "generation_config.json").write_text("{}")
    assert tokenizer_fingerprint(folder) == found[-1]
    spoil(folder / "tokenizer.json")
    assert len({*found, tokenizer_fingerprint(folder)}) == 4
    assert fingerprint(folder) == weights


def test_fingerprint_does_not_depend_on_the_place(folder: Path, cache: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(folder)


def test_fingerprint_is_remembered_where_asked(folder: Path, cache: Path, tmp_path: Path) -> None:
    value = fingerprint(folder, cache=tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").rglob("*.json"))) == 2
    assert not cache.exists()
    assert fingerprint(folder) == value
    assert len(list(cache.rglob("*.json"))) == 2


def test_damaged_cache_is_computed_again(folder: Path, cache: Path) -> None:
    value = fingerprint(folder)
    for file in cache.rglob("*.json"):
        file.write_text("{")
    assert fingerprint(folder) == value


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EVOMERGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "evomerge"


def test_nothing_to_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match="nothing to fingerprint"):
        fingerprint(tmp_path)


def test_pinned_source_verifies_until_it_changes(folder: Path, cache: Path) -> None:
    source = pin(Source(path=str(folder)))
    assert source.digest is not None
    assert source.revision is None
    assert verify(source) == folder.resolve()
    spoil(folder / "model.safetensors")
    with pytest.raises(BadSource, match=f"{source.digest}.*{fingerprint(folder)}"):
        verify(source)


def test_source_without_digest_verifies(folder: Path, cache: Path) -> None:
    assert verify(Source(path=str(folder))) == folder.resolve()
