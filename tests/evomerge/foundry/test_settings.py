import subprocess
import sys

import pytest
from pydantic import ValidationError

from evomerge.foundry import FoundrySettings
from evomerge.foundry import settings as settings_module


def test_equal_settings_have_equal_digests():
    assert FoundrySettings(seed=3).digest() == FoundrySettings.model_validate({"seed": 3}).digest()


def test_a_digest_survives_json():
    preset = FoundrySettings.sketch(2)
    assert FoundrySettings.model_validate_json(preset.model_dump_json()).digest() == preset.digest()


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"documents": 1_537},
        {"geometry": {"layers": 5}},
        {"held_out_share": 0.26},
        {"base_ceiling": 0.2},
    ],
)
def test_every_changed_field_changes_the_digest(changed):
    assert FoundrySettings.model_validate(changed).digest() != FoundrySettings().digest()


def test_a_new_format_version_changes_the_digest(monkeypatch):
    before = FoundrySettings().digest()
    monkeypatch.setattr(settings_module, "FORMAT_VERSION", settings_module.FORMAT_VERSION + 1)
    assert FoundrySettings().digest() != before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 1}, "Extra inputs"),
        ({"geometry": {"width": 60}}, "heads of even size"),
        ({"held_out_share": 1.0}, "less than 1"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        FoundrySettings.model_validate(wrong)


def test_names_that_would_share_a_folder_are_refused():
    experts = FoundrySettings().experts
    for name in ("base", "clean", "tasks", experts[1].name):
        with pytest.raises(ValidationError, match="distinct names"):
            FoundrySettings(experts=(experts[0].model_copy(update={"name": name}), experts[1]))


def test_task_names_that_clash_with_a_variant_are_refused():
    tasks = FoundrySettings().tasks
    clash = tasks[1].model_copy(update={"name": f"{tasks[0].name}_mc"})
    with pytest.raises(ValidationError, match="distinct names"):
        FoundrySettings(tasks=(tasks[0], clash))


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        FoundrySettings().seed = 1


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = (
        "import sys, evomerge.foundry as f; f.FoundrySettings().digest(); "
        "heavy = ('torch', 'transformers', 'tokenizers', 'lm_eval', 'datasets', 'safetensors'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
