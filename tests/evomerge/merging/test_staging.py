"""Sources at URLs: copied once, whole or not at all, anew when they change."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from evomerge.errors import BadSource
from evomerge.merging.sources import fingerprint, on_this_node, pin, resolve
from search_spaces.recipe import Source


@pytest.fixture
def url(request):
    """A model in a store, under a name of its own."""
    store, root = MemoryFileSystem(), f"/{request.node.name}"
    for name, data in {"config.json": b"{}", "model.safetensors": b"weights", "notes.txt": b"not needed"}.items():
        store.pipe_file(f"{root}/model/{name}", data)
    yield f"memory:/{root}/model"
    store.rm(root, recursive=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(folder):
    return {path.name for path in folder.iterdir()}


def test_what_a_model_needs_is_copied_once(url, cache):
    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(lambda _: resolve(url), range(8)))
    (folder,) = folders
    assert files(folder) == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert not list(cache.rglob("*.part"))
    inode = (folder / "model.safetensors").stat().st_ino
    assert (resolve(url) / "model.safetensors").stat().st_ino == inode


def test_a_changed_model_is_another_copy_and_another_source(url):
    source = pin(Source(path=url))
    before = resolve(url)
    MemoryFileSystem().pipe_file(f"{url.removeprefix('memory:/')}/model.safetensors", b"others!")
    assert resolve(url) != before
    assert source.digest == fingerprint(before)
    with pytest.raises(BadSource, match="have changed"):
        on_this_node(source, "/not/on/this/machine")


def test_a_copy_that_was_broken_off_is_made_anew(url, cache):
    folder = resolve(url)
    folder.rename(folder.with_suffix(".part"))
    (folder.with_suffix(".part") / "model.safetensors").write_bytes(b"half")
    assert (resolve(url) / "model.safetensors").read_bytes() == b"weights"


def test_a_worker_takes_the_folder_it_has_and_otherwise_brings_the_source(url, tmp_path):
    source = pin(Source(path=url))
    assert on_this_node(source, str(tmp_path)) == tmp_path
    assert on_this_node(source, "/not/on/this/machine") == resolve(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://nothing/here", "there is no model"),
        ("martian://x/y", "Protocol not known"),
        ("file:///nowhere/at/all", "no model"),
    ],
)
def test_places_without_a_model(url, expected):
    with pytest.raises(BadSource, match=expected) as error:
        resolve(url)
    assert "\n" not in str(error.value)
