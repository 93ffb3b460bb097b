"""Objectives relative to the base, through a real worker on tiny checkpoints."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from fakes import problem, search_file
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from evaluators.evaluation import Evaluation, Failure
from evaluators.objective import EvaluationSettings
from evomerge.config import SearchFile
from evomerge.errors import BadSearch
from evomerge.merging.statistics import needs
from evomerge.optimizers.preference import Preference
from evomerge.optimizers.registry import make_optimizer
from evomerge.worker import WorkerSpec
from search_spaces.calibration import Calibration, Sample
from search_spaces.operators import Linear, RegMean, TaskArithmetic
from search_spaces.recipe import Block, Blocks, Recipe, Source

WORDS = ("the", "a", "cat", "dog", "bird", "sat", "ran", "on", "mat", "sun", "red", "blue", "green", "one", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and two experts that differ from it by known amounts, a tokenizer of words, and a text file."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<eos>", "<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for name, size in (("base", 0.0), ("near", 0.05), ("far", 0.2)):
            for key, parameter in model.named_parameters():
                parameter.data = base[key] + size * torch.randn(parameter.shape)
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    rows = [" ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(6)) for i in range(40)]
    (folder / "corpus.txt").write_text("\n\n".join(rows))
    return folder


def worker(folder, *objectives, base=0, **more):
    value = [{"kind": "perplexity", "file": str(folder / "corpus.txt"), "window": 40}, *objectives]
    file = SearchFile.model_validate({"name": "x", "sources": {"base": "b", "experts": ["e"]}, "objectives": value})
    spec = WorkerSpec(
        folders=tuple(str(folder / name) for name in ("base", "near", "far")),
        tokenizer=0,
        dtype="float32",
        objectives=file.objectives,
        evaluation=EvaluationSettings(tokens_per_batch=512),
        base=base,
        **more,
    )
    return spec()


def recipe(operator):
    sources = tuple(Source(path=name) for name in ("base", "near", "far"))
    return Recipe(sources=sources, dtype="float32", body=Blocks(blocks=(Block(layers=(0, 2), operator=operator),)))


def measured(worker, operator, documents=range(10)):
    outcome = worker.evaluate(recipe(operator).to_json(), {"corpus.txt": tuple(documents)})
    assert isinstance(outcome, Evaluation), outcome
    return outcome


def delta(folder, name):
    one, other = (load_file(folder / each / "model.safetensors") for each in (name, "base"))
    return {key: one[key].double() - other[key].double() for key in other}


def norm(tensors):
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))


def test_distance_is_the_norm_of_the_difference_over_all_tensors(folder):
    found = worker(folder, {"kind": "distance"}, {"kind": "distance", "relative_to": "base"})
    near, far = delta(folder, "near"), delta(folder, "far")
    own = norm({key: tensor.double() for key, tensor in load_file(folder / "base" / "model.safetensors").items()})
    merged = {key: 0.5 * near[key] + 0.25 * far[key] for key in near}
    expected = {(1.0, 0.0, 0.0): 0.0, (0.0, 1.0, 0.0): norm(near), (0.0, 0.0, 1.0): norm(far)}
    for weights, distance in expected.items():
        scores = measured(found, Linear(weights=weights)).scores
        assert scores["distance"].value == pytest.approx(distance / norm(far), abs=1e-7)
        assert scores["distance/relative to base"].value == pytest.approx(distance / own, abs=1e-7)
    score = measured(found, TaskArithmetic(weights=(0.5, 0.25))).scores["distance"]
    assert score.value == pytest.approx(norm(merged) / norm(far), rel=1e-6)
    assert (score.standard_error, len(score.documents)) == (0.0, 0), "known without error, on no documents"


def test_forgetting_is_paired_with_the_base_on_the_same_documents(folder):
    file = str(folder / "corpus.txt")
    found = worker(folder, {"kind": "forgetting", "file": file, "window": 40})
    name, loss = "corpus.txt/perplexity per token forgotten", "corpus.txt/perplexity per token"
    base = measured(found, Linear(weights=(1.0, 0.0, 0.0)))
    assert base.scores[name].documents.tolist() == [0.0] * 10, "exactly nothing"
    far = measured(found, Linear(weights=(0.0, 0.0, 1.0)))
    np.testing.assert_array_equal(far.scores[name].documents, far.scores[loss].documents - base.scores[loss].documents)
    assert far.scores[name].value == pytest.approx(float(far.scores[name].documents.mean()))
    again = measured(
        worker(folder, {"kind": "forgetting", "file": file, "window": 40}), Linear(weights=(0.0, 0.0, 1.0))
    )
    np.testing.assert_array_equal(again.scores[name].documents, far.scores[name].documents)
    others = measured(found, Linear(weights=(0.0, 0.0, 1.0)), range(10, 16))
    assert len(others.scores[name].documents) == 6


def test_a_base_that_cannot_be_measured_fails_the_candidate_with_the_reason(folder, tmp_path):
    from evomerge.base_scores import Base, BaseScores

    objectives = SearchFile.model_validate(
        {
            "name": "x",
            "sources": {"base": "b", "experts": ["e"]},
            "objectives": [{"kind": "forgetting", "task": "a"}],
        }
    ).objectives
    from evaluators.evaluation import Documents, FailureKind
    from evomerge.merging.checkpoint import Checkpoint

    failed = Failure(FailureKind.NON_FINITE, "logits are NaN")
    checkpoints = [Checkpoint.open(folder / name) for name in ("base", "near", "far")]
    scores = BaseScores(objectives, Base(0, checkpoints), None, lambda *_: failed)
    found = scores.prepare(recipe(Linear(weights=(0.0, 1.0, 0.0))), Documents({"a": (1,)}))
    assert found.kind is FailureKind.NON_FINITE
    assert found.message == "the base cannot be measured: logits are NaN"


def test_an_objective_without_its_base_is_refused(folder):
    with pytest.raises(BadSearch, match="objective distance is relative to a base, and there is none"):
        worker(folder, {"kind": "distance"}, base=None)


def test_objectives_without_bounds_are_scaled_to_what_the_seeds_span():
    """Columns: accuracy, length (less is better), perplexity (less), distance (less; the base's is 0)."""
    seeds = np.array([[0.2, -40.0, -9.0, -0.0], [0.6, -90.0, -5.0, -1.0], [0.4, -60.0, -7.0, -0.55]])
    preference = Preference(np.ones(4))
    for seed in seeds:
        preference.see_seed(seed)
    scaled = preference.scaled(seeds)
    assert ((scaled >= 0) & (scaled <= 1)).all()
    np.testing.assert_allclose(scaled[:, 0], [0.2, 0.6, 0.4])
    np.testing.assert_allclose(scaled[:, 1], [1.0, 0.0, 0.6])
    np.testing.assert_allclose(scaled[:, 2], [0.0, 1.0, 0.5])
    np.testing.assert_allclose(scaled[:, 3], [1.0, 0.0, 0.45])


def test_text_files_are_relative_to_the_search_file_and_endpoints_are_no_sources(tmp_path):
    from evomerge.config import load

    value = {
        "name": "x",
        "sources": {"base": "./b", "experts": ["./e"]},
        "objectives": [{"kind": "perplexity", "file": "texts/a.txt"}, {"kind": "forgetting", "file": "texts/a.txt"}],
    }
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(value))
    assert {o.file for o in load(path).objectives} == {str(tmp_path / "texts" / "a.txt")}
    assert json.loads(load(path).model_dump_json())["objectives"][0]["kind"] == "perplexity"
    for change, expected in (
        ({"objectives": [{"kind": "distance"}]}, "at least one objective must be measured on documents"),
        (
            {"objectives": [{"kind": "length", "tsk": "a"}]},
            "unknown key 'objectives.0.tsk': did you mean 'task'? (known: direction, weight",
        ),
        ({"objectives": [{"kind": "magic"}]}, "objectives.0: "),
        ({"sources": {"base": "https://host/v1/completions", "experts": ["./e"]}}, "an endpoint has no weights"),
    ):
        path.write_text(yaml.safe_dump({**value, **change}))
        with pytest.raises(BadSearch) as raised:
            load(path)
        assert expected in str(raised.value)


# ------------------------------------------------------------------------- what is ready when a worker is


def test_statistics_are_there_before_the_first_candidate(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    prompts = Calibration(samples=(Sample(tokens=(2, 3, 4), answer=1),), experts=((0,), (0,)))
    example = recipe(RegMean(weights=(0.5, 0.5), prompts=prompts.digest))
    sources = tuple(Source(path=str(folder / source.path)) for source in example.sources)
    example = example.model_copy(update={"sources": sources})
    worker(folder, calibration=prompts, examples=(example.to_json(),))
    wanted = needs(example.body.blocks[0].operator, example, prompts)
    assert wanted
    assert all(need.complete() for need in wanted)


def test_an_example_that_fails_is_no_fault_of_the_worker(folder):
    cancelled = Linear(weights=(0.0, 1.0, -1.0), normalize=True)
    made = worker(folder, examples=(recipe(cancelled).to_json(),))
    assert isinstance(made.evaluate(recipe(cancelled).to_json(), {"corpus.txt": (0, 1)}), Failure)
    assert measured(made, Linear(weights=(0.0, 1.0, 0.0))).scores


@pytest.mark.parametrize(
    ("space", "kind", "merges"),
    [
        ({}, "cma_es", 1),
        ({"kind": "mosaic", "tile": 8}, "map_elites", 0),
        ({"kind": "data_flow", "models": ["one", "two"], "form": "paper", "repeats": 2}, "cma_es", 0),
        ({"kind": "joint", "models": [{}, "two"]}, "cat_cma", 1),
    ],
)
def test_workers_of_a_search_get_an_example_of_its_space(space, kind, merges, tmp_path):
    this = problem(search_file(tmp_path, space=space, optimizer={"kind": kind}))
    examples = [Recipe.model_validate_json(text) for text in this.worker_spec(device="cpu", threads=1).examples]
    proposed = make_optimizer(this.file.optimizer, this.setting()).ask(1)[0]
    assert type(examples[-1].body) is type(this.space.decode(proposed).body)
    assert sum(isinstance(example.body, Blocks) for example in examples) == merges


def test_a_first_candidate_has_time_for_the_base_that_is_measured_with_it(tmp_path):
    seconds = {"timeout_seconds": 100.0}
    usual = problem(search_file(tmp_path, evaluation=seconds))
    forgets = [{"task": "first"}, {"kind": "forgetting", "task": "second"}]
    first = problem(search_file(tmp_path, evaluation=seconds, objectives=forgets))
    assert (usual.longest_seconds, first.longest_seconds) == (100.0, 200.0)
