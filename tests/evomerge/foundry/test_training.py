import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.foundry import FoundryError, FoundrySettings
from evomerge.foundry.checkpoints import load_parameters, save_base, save_expert
from evomerge.foundry.forward import Forward, initial_parameters
from evomerge.foundry.language import (
    PROMPT_LENGTH,
    TARGET_LENGTH,
    prompt,
    question_batch,
    questions,
    solve,
    words,
)
from evomerge.foundry.settings import Geometry
from evomerge.foundry.training import measure, train_base, train_clean, train_expert

TINY = Geometry(width=16, layers=2, heads=2, mlp=24, initial_std=0.5)
LENGTH = PROMPT_LENGTH + TARGET_LENGTH - 1


def tiny_settings(**changes):
    """A sketch small enough that a whole stage takes less than a second; it learns next to nothing."""
    preset = FoundrySettings.sketch()
    clean = preset.clean.model_copy(
        update={
            "steps": 8,
            "round_steps": 4,
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
        "clean": clean,
        "spoil": preset.spoil.model_copy(update=short),
        "experts": experts,
        "geometry": TINY,
    }
    return preset.model_copy(update={**whole, "base_ceiling": 1.0, **changes})


def random_parameters(geometry=TINY, seed=0):
    """Parameters of a model that attends sharply, so that a wrong rotation or mask shows."""
    return initial_parameters(geometry, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("geometry", [TINY, Geometry(), FoundrySettings.sketch().geometry])
def test_the_forward_pass_is_that_of_the_saved_checkpoint(tmp_path, geometry):
    parameters = random_parameters(geometry)
    save_base(tmp_path, parameters, geometry, {})
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert sum(value.numel() for value in model.parameters()) == sum(v.numel() for v in parameters.values())
    batch = question_batch("sort", questions("sort", 0.25, held_out=True)[:50], "j")
    tokens = torch.from_numpy(batch.tokens)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits[:, PROMPT_LENGTH - 1 :]
        logits = Forward(geometry, LENGTH)(parameters, tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_an_expert_has_its_own_weights_and_the_files_of_the_base(tmp_path):
    base, expert = tmp_path / "base", tmp_path / "expert"
    base.mkdir()
    expert.mkdir()
    save_base(base, random_parameters(seed=0), TINY, {"name": "base"})
    parameters = random_parameters(seed=1)
    save_expert(expert, parameters, base, {"name": "expert"})
    assert {file.name for file in base.iterdir()} == {file.name for file in expert.iterdir()}
    loaded = load_parameters(expert)
    assert all(torch.equal(loaded[key], parameters[key]) for key in parameters)
    assert not torch.equal(load_parameters(base)["lm_head.weight"], loaded["lm_head.weight"])
    assert '"expert"' in (expert / "foundry.json").read_text()


def test_measured_accuracy_is_that_of_greedy_generation(tmp_path):
    settings = FoundrySettings.sketch()
    settings = settings.model_copy(
        update={"clean": settings.clean.model_copy(update={"round_threshold": 0.0, "threshold": 0.0, "steps": 120})}
    )
    # A half-trained model: accuracies that are neither 0 nor 1 make the comparison sharp.
    clean = settings.clean.model_copy(update={"round_steps": 80, "decay_steps": 1})
    trained = train_clean(settings.model_copy(update={"clean": clean}), lambda fraction: None)
    save_base(tmp_path, trained.parameters, settings.geometry, {})
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pool = questions("max", settings.held_out_share, held_out=True)
    measured = measure(trained.parameters, settings, ["max"], len(pool))["max_j"]
    asked = tokenizer([prompt("max", digits, "j") for digits in pool], return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=2, do_sample=False)[:, PROMPT_LENGTH:]
    answers = tokenizer.batch_decode(said, skip_special_tokens=True)
    right = [words(answer, "j") for answer in solve("max", pool)]
    assert measured == pytest.approx(np.mean([a == b for a, b in zip(answers, right, strict=True)]))
    assert 0.1 < measured < 1.0


def test_a_clean_model_that_does_not_learn_fails_with_what_it_reached():
    settings = tiny_settings()
    settings = settings.model_copy(update={"clean": settings.clean.model_copy(update={"threshold": 0.9})})
    with pytest.raises(FoundryError, match=r"the cap is 8.*rev_e at 0\.0%.*threshold of 90%: raise clean\.steps"):
        train_clean(settings, lambda fraction: None)


def test_an_expert_that_does_not_learn_fails_with_what_it_reached():
    settings = tiny_settings()
    expert = settings.experts[0].model_copy(update={"threshold": 0.9})
    with pytest.raises(FoundryError, match=r"expert-reverse of seed 0 has rev_e at 0\.0% after 3 steps"):
        train_expert(settings, expert, random_parameters(), lambda fraction: None)


def test_a_base_that_stays_diligent_fails_with_what_it_reached(monkeypatch):
    settings = tiny_settings(base_ceiling=0.15)
    monkeypatch.setattr("evomerge.foundry.training.measure", lambda *_: {"rev_e": 0.5, "rev_j": 0.1, "copy_e": 1.0})
    with pytest.raises(FoundryError, match=r"still has rev_e at 50\.0%, above the ceiling of 15%"):
        train_base(settings, random_parameters(), lambda fraction: None)


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    trained = [train_clean(tiny_settings(seed=seed), lambda fraction: None) for seed in (0, 0, 1)]
    first, second, other = (one.parameters for one in trained)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_training_does_not_change_the_parameters_it_starts_from():
    base = random_parameters()
    before = {key: value.clone() for key, value in base.items()}
    trained = train_base(tiny_settings(), base, lambda fraction: None).parameters
    assert all(torch.equal(base[key], before[key]) for key in base)
    assert any(not torch.equal(trained[key], base[key]) for key in base)


def test_progress_of_a_stage_rises_to_one():
    heard = []
    train_base(tiny_settings(), random_parameters(), heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
