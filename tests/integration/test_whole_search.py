"""A whole search on trained experts, and everything a user does with it afterwards."""

import json

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def searched(sketch, tmp_path_factory):
    from integration_driver import Driver

    driver = Driver(tmp_path_factory.mktemp("searched"))
    driver.write(sketch)
    driver.run("run", "search.yaml")
    return driver


def joint(results, candidate):
    return results.estimate(candidate, "test")["joint"].value


def test_the_winner_beats_every_expert_and_the_uniform_average(searched):
    results = searched.results()
    winner = joint(results, results.winner)
    for reference in results.references:
        assert winner > joint(results, reference) + 0.05, reference.label


def test_documents_of_the_splits_never_mix(searched):
    documents = searched.results().record.row.plan["documents"]
    for task in documents["search"]:
        ids = [set(documents[split][task]) for split in ("search", "validation", "test")]
        assert [len(part) for part in ids] == [32, 64, 256]
        assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])


def test_export_is_an_ordinary_checkpoint_with_the_recorded_scores(searched):
    searched.run("export", "small", "--best", "--to", "merged")
    folder = searched.folder / "merged"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert "evomerge" in (folder / "README.md").read_text(encoding="utf-8")
    results = searched.results()
    evaluation = results.winner.evaluations["test"]
    ids = results.record.row.plan["documents"]["test"]["rev_j"]
    documents = [json.loads(line) for line in documents_file(results).read_text(encoding="utf-8").splitlines()]
    recorded = results.record.document_scores(evaluation, "rev_j/exact_match")
    generated = [answer(model, tokenizer, documents[i]) for i in ids[:48]]
    assert generated == recorded[:48].tolist()


def documents_file(results):
    from pathlib import Path

    return Path(results.file.evaluation.include_path[0]) / "rev_j.jsonl"


def answer(model, tokenizer, document):
    """1.0 when stock transformers answers the document right."""
    prompt = tokenizer(document["prompt"], return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    text = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
    return float(text.split("<eos>")[0].strip() == document["answer"])


def test_merge_of_the_exported_recipe_gives_the_same_bytes(searched):
    searched.run("export", "small", "--best", "--format", "recipe", "--to", "winner.json")
    searched.run("merge", "winner.json", "--to", "again")
    if not (searched.folder / "merged").exists():
        searched.run("export", "small", "--best", "--to", "merged")
    first, second = ((searched.folder / name / "model.safetensors").read_bytes() for name in ("merged", "again"))
    assert first == second


def test_merge_of_the_exported_mergekit_config_gives_the_same_weights(searched):
    from safetensors.torch import load_file

    searched.run("export", "small", "--best", "--format", "mergekit", "--to", "winner.yml")
    config = yaml.safe_load((searched.folder / "winner.yml").read_text(encoding="utf-8"))
    assert config["merge_method"] in ("task_arithmetic", "linear", "ties")
    searched.run("merge", "winner.yml", "--to", "from-config")
    searched.run("export", "small", "--best", "--to", "for-config")
    ours, theirs = (load_file(searched.folder / name / "model.safetensors") for name in ("for-config", "from-config"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)


def test_evaluate_measures_a_model_like_the_search_did(searched):
    searched.run("export", "small", "--best", "--to", "to-measure")
    tasks = documents_file(searched.results()).parent
    done = searched.run("evaluate", "to-measure", "--tasks", "rev_e_mc", "--include-path", tasks, "--json")
    found = json.loads(done.stdout)
    results = searched.results()
    test = results.estimate(results.winner, "test")["rev_e_mc/acc"]
    assert test.low - 0.05 <= found["rev_e_mc/acc"]["value"] <= test.high + 0.05


@pytest.mark.parametrize(("what", "says"), [("digest", "the weights or the config"), ("tokenizer", "the tokenizer's")])
def test_evaluate_refuses_a_recipe_of_sources_that_have_changed(searched, what, says):
    searched.run("export", "small", "--best", "--format", "recipe", "--to", f"of-{what}.json")
    recipe = json.loads((searched.folder / f"of-{what}.json").read_text(encoding="utf-8"))
    recipe["sources"][0][what] = "0" * 64
    (searched.folder / "stale.json").write_text(json.dumps(recipe), encoding="utf-8")
    tasks = documents_file(searched.results()).parent
    done = searched.run("evaluate", "stale.json", "--tasks", "rev_e_mc", "--include-path", tasks, status=2)
    assert says in done.stderr


def test_every_read_command_works(searched):
    assert "finished" in searched.run("status", "small").stdout
    assert "winner (" in searched.run("front", "small").stdout
    assert "weight/expert-reverse" in searched.run("show", "small", "best").stdout
    searched.run("report", "small", "-o", "report.html")
    page = (searched.folder / "report.html").read_text(encoding="utf-8")
    assert "uniform average" in page
    assert "https://" not in page.split("<body", 1)[1].split("<script", 1)[0]


def test_check_says_what_the_run_will_need(searched):
    found = json.loads(searched.run("check", "search.yaml", "--json").stdout)
    assert found["genes"] == 6
    assert found["documents"] == {"search": 64, "validation": 128, "test": 512}
    assert found["seconds_of_search"] > 0


def test_a_changed_file_is_refused_with_the_difference(searched, sketch):
    searched.write(sketch, optimizer={"seed": 2})
    done = searched.run("run", "search.yaml", status=2)
    searched.write(sketch)
    assert "optimizer.seed: 1 -> 2" in done.stderr
    assert done.stderr.count("\n") <= 6


def test_a_changed_model_is_refused(searched, sketch, tmp_path):
    import shutil

    copy = tmp_path / "expert-reverse"
    shutil.copytree(sketch.experts["expert-reverse"], copy)
    value = searched.write(sketch, name="moved", budget={"evaluations": 6, "finalists": 2})
    value["sources"]["experts"][0] = str(copy)
    (searched.folder / "search.yaml").write_text(yaml.safe_dump(value))
    searched.run("run", "search.yaml")
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    done = searched.run("run", "search.yaml", status=2)
    searched.write(sketch)
    assert "the files have changed since search 'moved' began" in done.stderr
    done = searched.run("export", "moved", "--candidate", "1", "--to", "x", status=2)
    assert "digest" in done.stderr or "changed" in done.stderr


def test_hypervolume_of_the_front_is_that_of_all_candidates(searched):
    from evomerge.archives import pareto

    results = searched.results()
    values = [results.chooser.maximised(c, "search") for c in results.candidates if c.state == "measured"]
    front = [results.chooser.maximised(c, "search") for c in results.front]
    zero = np.zeros(2)
    assert pareto.hypervolume(np.stack(front), zero) == pytest.approx(pareto.hypervolume(np.stack(values), zero))
