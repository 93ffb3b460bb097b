import multiprocessing
import os

import pytest

from evomerge.foundry.cache import CachePaths, fault, locked, stands_elsewhere, write_manifest


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "entry"
    (made / "base").mkdir(parents=True)
    (made / "base" / "weights").write_bytes(b"12345")
    (made / "top").write_bytes(b"")
    write_manifest(made, location=made)
    return made


def test_a_whole_folder_has_no_fault(folder):
    assert fault(folder) is None


def test_a_file_that_appeared_later_is_no_fault(folder):
    (folder / "base" / "new").write_bytes(b"x")
    assert fault(folder) is None


@pytest.mark.parametrize("content", [b"12345 ", b"1234", b"12346", b""])
def test_a_changed_file_is_a_fault(folder, content):
    (folder / "base" / "weights").write_bytes(content)
    assert fault(folder) == "base/weights differs from the manifest"


def test_a_missing_file_is_a_fault(folder):
    (folder / "top").unlink()
    assert fault(folder) == "top is missing"


def test_a_missing_folder_is_a_fault(tmp_path):
    assert fault(tmp_path / "nothing") == "manifest.json is missing"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {"top": {}}'])
def test_a_broken_manifest_is_a_fault(folder, text):
    (folder / "manifest.json").write_text(text)
    assert fault(folder) == "manifest.json is not a manifest"


def test_a_moved_folder_is_noticed(folder, tmp_path):
    assert not stands_elsewhere(folder)
    moved = folder.rename(tmp_path / "moved")
    assert fault(moved) is None
    assert stands_elsewhere(moved)


def test_paths_are_absolute_and_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = CachePaths.of(type(tmp_path)("cache"), "abc")
    assert paths.root == tmp_path / "cache" / "abc"
    assert {path.parent for path in paths} == {tmp_path / "cache"}
    assert len(set(paths)) == 3


def _hold(file, entered, release):
    with locked(file, lambda: None):
        entered.set()
        release.wait()


def test_one_process_at_a_time_holds_the_lock_and_the_other_is_told_to_wait(tmp_path):
    context = multiprocessing.get_context("spawn")
    entered, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", entered, release))
    holder.start()
    entered.wait()
    waits = []

    def waiting():
        waits.append(os.getpid())
        release.set()

    with locked(tmp_path / "lock", waiting):
        assert waits
    holder.join()
    assert holder.exitcode == 0
