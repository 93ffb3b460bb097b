import json
import shutil
import subprocess
import sys

import pytest
import torch

from evomerge.foundry import FoundryError, FoundrySettings, build, builder
from evomerge.foundry.cache import CachePaths, fault
from evomerge.foundry.settings import Geometry
from evomerge.foundry.stage import run_stage


def tiny_settings(**changes):
    """Two experts that learn next to nothing, in a few steps: for tests of what surrounds training."""
    preset = FoundrySettings.sketch()
    clean = preset.clean.model_copy(
        update={
            "steps": 4,
            "round_steps": 2,
            "decay_steps": 2,
            "batch": 8,
            "round_threshold": 0.0,
            "threshold": 0.0,
        }
    )
    short = {"steps": 3, "batch": 8}
    experts = tuple(
        expert.model_copy(update={"stage": expert.stage.model_copy(update=short), "threshold": 0.0})
        for expert in preset.experts
    )
    whole = {
        "geometry": Geometry(width=16, layers=2, heads=2, mlp=24),
        "clean": clean,
        "spoil": preset.spoil.model_copy(update=short),
        "experts": experts,
        "documents": 24,
        "measured_questions": 8,
        "base_ceiling": 1.0,
    }
    return FoundrySettings.model_validate(preset.model_copy(update={**whole, **changes}).model_dump())


def contents(foundry):
    """Every file of a foundry by relative name."""
    return {p.relative_to(foundry.root): p.read_bytes() for p in foundry.root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def heard():
    """What `progress` was told while `cache` was filled, in order."""
    return []


@pytest.fixture(scope="module")
def cache(tmp_path_factory, heard):
    """A cache that holds the tiny foundry, trained in processes; tests that damage it copy it first."""
    folder = tmp_path_factory.mktemp("cache")
    build(tiny_settings(), cache=folder, progress=lambda what, fraction: heard.append((what, fraction)))
    return folder


@pytest.fixture
def copy(cache, tmp_path):
    """A cache of one's own to damage. It stands elsewhere than where it was built."""
    return shutil.copytree(cache, tmp_path / "cache")


@pytest.fixture
def no_training(monkeypatch):
    """Any attempt to train fails."""

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("evomerge.foundry.builder.run_stages", refuse)


@pytest.fixture
def no_training_at_all(monkeypatch):
    """Any stage that is asked for fails; asking for none is right."""

    def refuse(names, folder, **_):
        assert not names

    monkeypatch.setattr("evomerge.foundry.builder.run_stages", refuse)


@pytest.fixture
def in_process(monkeypatch):
    """Stages run in this process, which has torch loaded already, one after the other."""

    def run_here(names, folder, *, processes, report):
        for name in names:
            run_stage(tiny_settings(), name, folder, lambda fraction, name=name: report(name, fraction))

    # As in a process of its own: the order of sums depends on the number of threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("evomerge.foundry.builder.run_stages", run_here)
    yield
    torch.set_num_threads(threads)


def test_a_foundry_is_complete(cache, no_training):
    foundry = build(tiny_settings(), cache=cache)
    assert list(foundry.experts) == ["expert-reverse", "expert-language"]
    for folder in (foundry.base, *foundry.experts.values()):
        files = {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "foundry.json",
        }
        assert files <= {file.name for file in folder.iterdir()}
    assert foundry.task_names == ("rev_e", "rev_j", "general_j", "rev_e_mc", "rev_j_mc", "general_j_mc")
    assert foundry.objectives == ("rev_j",)
    assert all((foundry.tasks / f"{name}.yaml").is_file() for name in foundry.task_names)
    assert set(foundry.accuracy()) == {"base", "expert-reverse", "expert-language"}
    assert {p.name for p in foundry.root.iterdir()} == {
        *("base", "expert-reverse", "expert-language", "tasks", "manifest.json", "settings.json")
    }
    assert not list(cache.glob("*.work"))


def test_a_second_build_trains_nothing_and_changes_nothing(cache, no_training):
    before = contents(build(tiny_settings(), cache=cache))
    told = []
    after = build(tiny_settings(), cache=cache, progress=lambda what, fraction: told.append((what, fraction)))
    assert contents(after) == before
    assert told == [("ready", 1.0)]


def test_other_settings_have_another_entry(cache, no_training):
    with pytest.raises(AssertionError, match="trained again"):
        build(tiny_settings(seed=7), cache=cache)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_entry_is_built_again_with_the_same_content(cache, copy, in_process, damage):
    whole = contents(build(tiny_settings(), cache=cache))
    weights = copy / tiny_settings().digest() / "expert-reverse" / "model.safetensors"
    if damage == "changed":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        weights.unlink()
    rebuilt = contents(build(tiny_settings(), cache=copy))
    assert rebuilt.keys() == whole.keys()
    # Task files and manifest name the folder that they stand in.
    same = [name for name in whole if name.suffix != ".yaml" and name.name != "manifest.json"]
    assert all(rebuilt[name] == whole[name] for name in same)


def test_an_entry_that_was_moved_gets_new_task_files_and_keeps_its_weights(cache, copy, no_training):
    moved = build(tiny_settings(), cache=copy)
    yaml = (moved.tasks / "rev_j.yaml").read_text(encoding="utf-8")
    assert json.dumps(str(moved.tasks / "rev_j.jsonl")) in yaml
    assert str(cache) not in yaml
    again = contents(moved)
    assert contents(build(tiny_settings(), cache=copy)) == again


def test_a_failed_build_leaves_no_entry_and_is_taken_up_where_it_stopped(tmp_path, in_process, monkeypatch):
    settings = tiny_settings()
    stages = []
    real = builder.run_stages

    def recorded(names, folder, **rest):
        stages.append(list(names))
        if "expert-reverse" in names and len(stages) < 4:
            real(names[:1], folder, **rest)
            raise FoundryError("the power went")
        real(names, folder, **rest)

    monkeypatch.setattr("evomerge.foundry.builder.run_stages", recorded)
    with pytest.raises(FoundryError, match="the power went"):
        build(settings, cache=tmp_path)
    assert not (tmp_path / settings.digest()).exists()
    build(settings, cache=tmp_path)
    experts = ["expert-reverse", "expert-language"]
    assert stages == [["clean"], ["base"], experts, [], [], experts[1:]]


def test_a_build_that_was_stopped_at_the_very_end_trains_nothing(copy, no_training_at_all):
    paths = CachePaths.of(copy, tiny_settings().digest())
    # The clean model is gone, everything else is there, the rename is missing.
    paths.root.rename(paths.work)
    assert fault(build(tiny_settings(), cache=copy).root) is None


def test_a_stage_that_misses_its_threshold_says_so(tmp_path):
    settings = tiny_settings()
    settings = settings.model_copy(update={"clean": settings.clean.model_copy(update={"threshold": 0.9})})
    with pytest.raises(FoundryError, match=r"the clean model of seed 0 has rev_e at 0\.0%"):
        build(settings, cache=tmp_path)


def test_a_stage_whose_process_dies_shows_its_last_words(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho out of cheese >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(FoundryError, match="trains clean ended with status 3: out of cheese"):
        build(tiny_settings(), cache=tmp_path / "cache")


def test_no_process_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        build(tiny_settings(), cache=tmp_path, processes=0)


def test_progress_names_what_is_done_and_never_falls(cache, heard):
    fractions = [fraction for _, fraction in heard]
    assert fractions == sorted(fractions)
    assert heard[-1] == ("ready", 1.0)
    text = " ".join(what for what, _ in heard)
    assert all(name in text for name in ("clean", "base", "expert-reverse", "expert-language", "tasks"))
    # A stage that is done is not named any more.
    assert not any("clean" in what and "base" in what for what, _ in heard)


@pytest.mark.slow
def test_two_builders_at_once_make_one_whole_entry(tmp_path):
    code = (
        "import sys; from pathlib import Path; from evomerge.foundry import FoundrySettings, build; "
        "s = FoundrySettings.model_validate_json(sys.stdin.read()); heard = []; "
        "f = build(s, cache=Path(sys.argv[1]), progress=lambda what, _: heard.append(what)); "
        "print('trained' if any(what.startswith('training') for what in heard) else 'found')"
    )
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in builders:
        process.stdin.write(tiny_settings().model_dump_json())
        process.stdin.close()
    said = sorted(process.stdout.read().strip() for process in builders)
    assert [process.wait() for process in builders] == [0, 0]
    assert said == ["found", "trained"]
    for process in builders:
        process.stdout.close()
