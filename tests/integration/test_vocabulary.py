"""A search whose experts have tokens that the base does not know."""

import shutil

import pytest
import torch
from integration_driver import Driver
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow


def with_a_token(expert, to):
    """Write ``expert`` with one token more, whose row is zero."""
    model = AutoModelForCausalLM.from_pretrained(expert)
    tokenizer = AutoTokenizer.from_pretrained(expert)
    shutil.copytree(expert, to)
    tokenizer.add_tokens("<tool>")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
            embeddings.weight[-1] = 0.0
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to


def searched(sketch, folder, experts, **sources):
    folder.mkdir()
    driver = Driver(folder)
    value = {"base": str(sketch.base), "experts": list(map(str, experts)), "dtype": "float32", **sources}
    small = {"search_documents": 16, "validation_documents": 16, "test_documents": 32}
    driver.write(
        sketch,
        sources=value,
        evaluation={**small, "include_path": [str(sketch.tasks)]},
        baselines={"single_coefficient": 0},
        budget={"evaluations": 6, "finalists": 2},
    )
    return driver


def test_an_expert_with_a_token_more_is_merged_as_if_it_had_none(sketch, tmp_path):
    plain = list(sketch.experts.values())
    more = [plain[0], with_a_token(plain[1], tmp_path / plain[1].name)]
    driver = searched(sketch, tmp_path / "union", more, vocabulary="union")
    checked = driver.run("check", "search.yaml").stdout
    assert f"vocabulary {sketch.base.name} gets 1 rows of {plain[1].name}" in checked
    driver.run("run", "search.yaml")
    usual = searched(sketch, tmp_path / "usual", plain)
    usual.run("run", "search.yaml")
    found, expected = (
        [c.values("search", d.results().chooser.names).tolist() for c in d.results().candidates]
        for d in (driver, usual)
    )
    assert found == expected
    driver.run("export", "small", "--best", "--to", "merged")
    tokenizer = AutoTokenizer.from_pretrained(driver.folder / "merged")
    model = AutoModelForCausalLM.from_pretrained(driver.folder / "merged")
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(sketch.base)) + 1 == model.config.vocab_size
