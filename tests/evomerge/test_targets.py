"""Exports and reports at fsspec URLs: whole or not at all, verified, and refused with a reason."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from evomerge.errors import UserMistake
from evomerge.targets import local, shown


class Recording(MemoryFileSystem):
    """Remembers the order in which files come, and fails or cuts where it is told to."""

    protocol = "recording"
    store, pseudo_dirs = {}, [""]
    order, fail_at, cut = [], None, False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("recording://"))

    def put_file(self, lpath, rpath, *args, **kwargs):
        if self.fail_at is not None and self.fail_at in rpath:
            raise ConnectionError("the bucket\nis away")
        self.order.append(rpath.rpartition("/")[2])
        super().put_file(lpath, rpath, *args, **kwargs)
        if self.cut:
            self.store[self._strip_protocol(rpath)].seek(2)
            self.store[self._strip_protocol(rpath)].truncate()


@pytest.fixture
def store():
    """An empty store at recording://."""
    fsspec.register_implementation("recording", Recording, clobber=True)
    Recording.store, Recording.pseudo_dirs = {}, [""]
    Recording.order, Recording.fail_at, Recording.cut = [], None, False
    return Recording()


FILES = {"config.json": "{}", "model-1.safetensors": "abc", "sub/chat.jinja": "hello", "README.md": ""}


def write_folder(place, files=FILES):
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)


def contents(store, root):
    return {path[len(root) + 1 :]: store.cat(path).decode() for path in store.find(root)}


def test_a_folder_arrives_whole_with_its_config_last(store):
    with local("recording://bucket/merged") as place:
        assert place.name == "merged"
        write_folder(place)
    assert contents(store, "/bucket/merged") == FILES
    assert store.order[-1].startswith("config.json")


def test_a_file_arrives_under_another_name_first(store):
    with local("recording://bucket/deep/r.json") as place:
        place.write_text("text")
    assert contents(store, "/bucket") == {"deep/r.json": "text"}
    assert store.order[0].startswith("r.json.") and store.order[0].endswith(".part")


@pytest.mark.parametrize("existing", ["bucket/merged/old", "bucket/merged"])
def test_what_is_there_is_refused_and_left_alone(store, existing):
    store.pipe(existing, b"old")
    refused = pytest.raises(UserMistake, match="recording://bucket/merged: exists already")
    with refused, local("recording://bucket/merged"):
        pytest.fail("must not be written")
    assert store.cat(existing) == b"old"


def test_reports_replace_what_is_there(store):
    store.pipe("bucket/r.html", b"old")
    with local("recording://bucket/r.html", replace=True) as place:
        place.write_text("new")
    assert contents(store, "/bucket") == {"r.html": "new"}


@pytest.mark.parametrize("at", ["model-1", "chat", "config"])
def test_what_cannot_be_copied_leaves_nothing(store, at):
    Recording.fail_at = at
    refused = pytest.raises(UserMistake, match=r"recording://bucket/merged: cannot be written \(the bucket is away\)")
    with refused, local("recording://bucket/merged") as place:
        write_folder(place)
    assert contents(store, "/bucket/merged") == {}


@pytest.mark.parametrize("path", ["bucket/merged", "bucket/r.json"])
def test_a_file_that_arrives_cut_is_noticed(store, path):
    Recording.cut = True
    with pytest.raises(UserMistake, match="bytes there, not"), local(f"recording://{path}") as place:
        if path.endswith("json"):
            place.write_text("text")
        else:
            write_folder(place)
    assert store.find("/bucket") == []


def test_a_failed_replacement_keeps_the_old_file(store):
    store.pipe("bucket/r.html", b"old")
    Recording.cut = True
    with pytest.raises(UserMistake), local("recording://bucket/r.html", replace=True) as place:
        place.write_text("new text")
    assert contents(store, "/bucket") == {"r.html": "old"}


def test_nothing_is_copied_after_an_error(store):
    with pytest.raises(ZeroDivisionError), local("recording://bucket/merged") as place:
        write_folder(place)
        raise ZeroDivisionError
    assert store.find("/bucket") == []


def test_local_places_are_written_in_place(tmp_path):
    for to in (tmp_path / "a", str(tmp_path / "a"), f"file://{tmp_path}/a"):
        with local(to) as place:
            assert place == tmp_path / "a"


@pytest.mark.parametrize(("url", "expected"), [("nope://x/y", "Protocol not known: nope"), ("abfs://x/y", "nstall")])
def test_a_store_that_is_not_there_is_said_on_one_line(url, expected):
    with pytest.raises(UserMistake) as caught, local(url):
        pytest.fail("must not be written")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_passwords_are_not_shown():
    assert shown("sftp://ann:secret@host/x") == "sftp://ann:***@host/x"
    assert shown("/plain/path:with@signs") == "/plain/path:with@signs"
