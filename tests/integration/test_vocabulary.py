"""A search whose experts have tokens that the base does not know."""

import shutil

import pytest
import torch
from integration_driver import Driver
from transformers import AutoModelForCausalLM, AutoTokenizer

import evomerge
from evomerge.estimate import estimate
from evomerge.export import export

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
    """Write a search file in ``folder`` and return it, loaded."""
    folder.mkdir()
    value = {"base": str(sketch.base), "experts": list(map(str, experts)), "dtype": "float32", **sources}
    small = {"search_documents": 16, "validation_documents": 16, "test_documents": 32}
    Driver(folder).write(
        sketch,
        sources=value,
        evaluation={**small, "include_path": [str(sketch.tasks)]},
        baselines={"single_coefficient": 0},
        budget={"evaluations": 6, "finalists": 2},
        storage=f"sqlite:///{folder}/evomerge.db",
    )
    return evomerge.load_file(folder / "search.yaml")


def values(results):
    found = [c.values("search", results.chooser.names) for c in results.candidates]
    assert sum(each is not None for each in found) >= 6
    return [None if each is None else each.tolist() for each in found]


def test_an_expert_with_a_token_more_is_merged_as_if_it_had_none(sketch, tmp_path):
    plain = list(sketch.experts.values())
    more = [plain[0], with_a_token(plain[1], tmp_path / plain[1].name)]
    file = searched(sketch, tmp_path / "union", more, vocabulary="union")
    lines = estimate(file, say=lambda _: None).lines()
    assert any(line.startswith(f"vocabulary {sketch.base.name} gets 1 rows of {plain[1].name}") for line in lines)
    results = evomerge.run(file)
    usual = evomerge.run(searched(sketch, tmp_path / "usual", plain))
    assert values(results) == values(usual)
    tokenizers = [found.record.row.plan["tokenizers"] for found in (results, usual)]
    assert [len(set(each)) for each in tokenizers] == [2, 1]  # those that scores depend on
    export(results, results.pick("best"), tmp_path / "merged", kind="checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(sketch.base)) + 1 == model.config.vocab_size
