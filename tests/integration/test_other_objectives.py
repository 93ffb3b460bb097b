"""A whole search whose objectives are not only lm-eval metrics."""

import json

import pytest
import yaml

pytestmark = pytest.mark.slow

NAMES = [
    "rev_j/exact_match",
    "rev_j/likelihood per token",
    "rev_j/length",
    "corpus.txt/perplexity per token",
    "rev_e_mc/acc forgotten",
    "distance",
]


@pytest.fixture(scope="module")
def searched(sketch, tmp_path_factory):
    from integration_driver import Driver

    driver = Driver(tmp_path_factory.mktemp("objectives"))
    rows = [json.loads(line) for line in (sketch.tasks / "rev_j.jsonl").read_text().splitlines()]
    text = "\n\n".join(f"{row['prompt']} {row['answer']}" for row in rows[:120])
    (driver.folder / "corpus.txt").write_text(text)
    driver.write(
        sketch,
        objectives=[
            {"task": "rev_j", "metric": "exact_match"},
            {"kind": "likelihood", "task": "rev_j", "per": "token"},
            {"kind": "length", "task": "rev_j"},
            {"kind": "perplexity", "file": "corpus.txt", "window": 40},
            {"kind": "forgetting", "task": "rev_e_mc"},
            {"kind": "distance"},
        ],
        evaluation={
            "search_documents": 24,
            "validation_documents": 16,
            "test_documents": 32,
            "include_path": [str(sketch.tasks)],
        },
        budget={"evaluations": 16, "finalists": 3},
        baselines={"single_coefficient": 2},
    )
    driver.run("run", "search.yaml")
    return driver


def test_it_ends_with_every_objective_measured_on_every_split(searched):
    results = searched.results()
    assert results.state == "finished"
    assert list(results.chooser.names) == NAMES
    for split in ("search", "validation", "test"):
        assert set(results.winner.evaluations[split].scores) == set(NAMES)
    base = next(candidate for candidate in results.candidates if candidate.name == "base")
    estimates = results.estimate(base, "test")
    assert (estimates["distance"].value, estimates["distance"].low) == (0.0, 0.0)
    assert estimates["rev_e_mc/acc forgotten"].value == 0.0
    joint = results.estimate(results.winner, "test")["joint"]
    assert joint.low < joint.value < joint.high


def test_documents_of_the_text_file_never_mix(searched):
    documents = searched.results().record.row.plan["documents"]
    parts = [set(documents[split]["corpus.txt"]) for split in ("search", "validation", "test")]
    assert [len(part) for part in parts] == [24, 16, 32]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_it_is_shown_and_continued_like_any_other(searched):
    assert "distance" in searched.run("front", "small").stdout
    searched.run("report", "small", "-o", "report.html")
    page = (searched.folder / "report.html").read_text(encoding="utf-8")
    assert "likelihood per token" in page and "corpus.txt" in page
    spent = searched.results().spent
    searched.run("run", "search.yaml")
    assert searched.results().spent == spent


def test_evaluate_measures_the_exported_winner_like_the_search_did(searched, sketch):
    searched.run("export", "small", "--best", "--to", "merged")
    file = yaml.safe_load((searched.folder / "search.yaml").read_text())
    wanted = [o for o in file["objectives"] if o.get("kind") in ("length", "forgetting", "distance")]
    wanted[-1]["relative_to"] = "base"
    (searched.folder / "objectives.yaml").write_text(yaml.safe_dump({"objectives": wanted}))
    options = ("--objectives", "objectives.yaml", "--include-path", sketch.tasks, "--limit", "40", "--json")
    found = json.loads(searched.run("evaluate", "merged", "--base", sketch.base, *options).stdout)
    assert set(found) == {"rev_j/length", "rev_e_mc/acc forgotten", "distance/relative to base"}
    assert found["distance/relative to base"]["value"] > 0
    done = searched.run("evaluate", "merged", *options, status=2)
    assert "is relative to a base, and there is none; name it (--base)" in done.stderr
