"""The search file: what is refused, and how it is said."""

import json
from pathlib import Path

import pytest
import yaml

from evomerge.config import SearchFile, differences, load
from evomerge.errors import BadSearch

GOOD = {
    "name": "ja-math",
    "sources": {"base": "org/base", "experts": ["org/maths", {"path": "./japanese", "name": "ja"}]},
    "objectives": [{"task": "gsm8k", "metric": "exact_match,strict-match"}],
}


def write(folder, value):
    path = folder / "search.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value), encoding="utf-8")
    return path


def refused(folder, value):
    with pytest.raises(BadSearch) as error:
        load(write(folder, value))
    text = str(error.value)
    assert "\n" not in text
    return text


def test_defaults_and_relative_paths(tmp_path):
    (tmp_path / "org").mkdir()
    file = load(write(tmp_path, {**GOOD, "evaluation": {"include_path": ["tasks"]}}))
    assert file.sources.base.path == "org/base"
    assert file.sources.experts[1].path == str(tmp_path / "japanese")
    assert [expert.short_name for expert in file.sources.experts] == ["maths", "ja"]
    assert file.evaluation.include_path == (str(tmp_path / "tasks"),)
    assert file.storage == "sqlite:///evomerge.db"
    assert file.optimizer.kind == "cma_es"


def test_what_only_follows_from_a_fault_is_not_said(tmp_path):
    text = refused(tmp_path, {**GOOD, "objectives": [{"kind": "lenght", "task": "a"}]})
    assert "did you mean 'length'?" in text
    assert "at least 1" not in text


def test_a_folder_beside_the_file_is_preferred_to_a_hub_id(tmp_path):
    (tmp_path / "org" / "base").mkdir(parents=True)
    assert load(write(tmp_path, GOOD)).sources.base.path == str(tmp_path / "org" / "base")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"objektives": []}, ["unknown key 'objektives'", "known: name, sources, space, objectives"]),
        ({"budget": {"evaluation": 10}}, ["unknown key 'budget.evaluation'", "known: evaluations, hours"]),
        (
            {"objectives": [{"task": "a", "metrik": "acc"}]},
            ["'objectives.0.metrik'", "known: direction, weight, kind, task"],
        ),
        ({"budget": {"evaluations": 0}}, ["budget.evaluations", "greater than or equal to 1"]),
        ({"budget": {"evaluatons": 10}}, ["unknown key 'budget.evaluatons': did you mean 'evaluations'? (known:"]),
        ({"optimizer": {"kind": "cmaes"}}, ["optimizer: kind 'cmaes' is not known: did you mean 'cma_es'? (known:"]),
        ({"space": {"operator": "ties_"}}, ["operator 'ties_' is not known: did you mean 'ties'? (known: linear"]),
        ({"budget": {"hours": 0}}, ["budget.hours", "greater than 0"]),
        ({"objectives": []}, ["objectives", "at least 1"]),
        ({"objectives": [{"task": "a"}, {"task": "a"}]}, ["given twice: a/acc"]),
        ({"sources": {"base": "b", "experts": []}}, ["sources.experts"]),
        ({"sources": {"base": "b", "experts": ["x/m", "y/m"]}}, ["two experts are called m"]),
        ({"name": "../evil"}, ["name"]),
        ({"calibration": {}}, ["no operator of this space needs statistics"]),
        (
            {"space": {"operator": "fisher"}, "calibration": {"tasks": {"math": ["a"]}}},
            ["math is no expert (known: maths, ja)"],
        ),
        ({"space": {"operator": "fisher"}, "calibration": {"tasks": {"ja": []}}}, ["ja has no task"]),
        ({"space": {"operator": "magic"}}, ["space.operator", "task_arithmetic"]),
        ({"space": {"weight": [1, 0]}}, ["space.weight", "low < high"]),
        ({"cluster": {"workers": 0}}, ["at least 1"]),
        ({"cluster": {"gpus_per_worker": 1.5}}, ["cluster.gpus_per_worker", "a whole number of them (2), expected"]),
        ({"optimizer": {"kind": "gradient"}}, ["optimizer: ", "'gradient'", "cma_es"]),
        ({"optimizer": {"kind": "gp", "sigma": 1}}, ["unknown key 'optimizer.sigma'", "known: seed, kind"]),
        ({"optimizer": {"sgima": 1}}, ["unknown key 'optimizer.sgima'", "known: seed, kind, sigma, population"]),
        ({"optimizer": {"kind": "nsga2", "population": 1}}, ["optimizer.population: ", "greater than or equal to 4"]),
        ({"evaluation": {"search_documents": 0}}, ["evaluation.search_documents"]),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, change, expected):
    text = refused(tmp_path, {**GOOD, **change})
    for part in expected:
        assert part in text


def test_missing_sections_are_named(tmp_path):
    assert "sources: Field required" in refused(tmp_path, {"name": "x", "objectives": [{"task": "a"}]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("- a\n- b\n", "a list"), ("just words", "a text"), ("", "nothing"), ("a: [1", "not YAML"), ("3", "a int")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, expected):
    assert expected in refused(tmp_path, text)


def test_a_missing_or_unreadable_file_is_refused(tmp_path):
    with pytest.raises(BadSearch, match="no such file; `evomerge init` writes one"):
        load(tmp_path / "nothing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(BadSearch, match="cannot be read"):
        load(tmp_path / "latin.yaml")


def test_yaml_cannot_build_objects(tmp_path):
    assert "not YAML" in refused(tmp_path, "name: !!python/object/apply:os.system ['true']")


def test_differences_name_the_leaf():
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}
    assert differences(old, new) == ["a.c: 2 -> 3", "d: null -> 4"]


def test_only_budget_cluster_logging_and_storage_may_change():
    file = SearchFile.model_validate(GOOD)
    assert set(file.model_dump()) - set(file.fixed_part()) == {"budget", "cluster", "logging", "storage"}


def test_the_shipped_json_schema_is_the_schema():
    shipped = Path(__file__).resolve().parents[2] / "evomerge" / "search_file.schema.json"
    assert json.loads(shipped.read_text(encoding="utf-8")) == SearchFile.model_json_schema()


def test_vocabularies_are_told_by_the_names_of_sources(tmp_path):
    def sources(vocabulary):
        return load(write(tmp_path, {**GOOD, "sources": {**GOOD["sources"], "vocabulary": vocabulary}})).sources

    assert load(write(tmp_path, GOOD)).sources.vocabulary_policy() is None
    assert sources("union").vocabulary_policy().source == "union"
    assert sources("ja").vocabulary_policy().source == 2
    tokens = {"<a>": {"source": "base", "token": "b", "force": True}, "<c>": {"source": "zero"}}
    policy = sources({"source": "base", "tokens": tokens, "pad_to_multiple_of": 64}).vocabulary_policy()
    assert (policy.source, policy.tokens["<a>"].source, policy.tokens["<c>"].source) == (0, 0, "zero")
    for bad in ("fr", {"tokens": {"<a>": {"source": "fr"}}}, {"tokens": {"<a>": {"source": "zero", "token": "b"}}}):
        assert "sources" in refused(tmp_path, {**GOOD, "sources": {**GOOD["sources"], "vocabulary": bad}})
