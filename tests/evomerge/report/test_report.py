"""The report: complete, self-contained, safe, and possible at any moment of a search."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from evaluators.evaluation import FailureKind
from evomerge.config import SearchFile
from evomerge.report import write_report
from evomerge.report_facts import duration
from evomerge.results import JOINT
from evomerge.tables import interval
from search_spaces.genes import Genome

pytest.importorskip("evaluators.statistics")


def page_of(results, tmp_path: Path, others=()) -> str:
    to = tmp_path / "out" / "report.html"
    write_report(results, to, others=others)
    return to.read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """The page's own text, without Plotly, figures and markup."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def figures_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(text)["figures"]


def test_finished_search_says_its_test_scores(finished, random_search, tmp_path):
    results, others = finished.results, [random_search.results]
    page = page_of(results, tmp_path, others)
    words = words_of(page)
    rows = {row.role: row for row in results.table(others)}
    for role in ("winner", "uniform average", "base", "random", "single coefficient"):
        assert interval(rows[role].estimates[JOINT]) in words
    assert f"The winner, {results.winner.label}, scores {interval(rows['winner'].estimates[JOINT])}" in words
    assert "best of ja-math.random" in words
    for row in results.table(others):
        for estimate in row.estimates.values():
            assert f"{estimate.value:.3f} {estimate.low:.3f} – {estimate.high:.3f}" in words
    for source in results.record.row.plan["sources"]:
        assert source["digest"] in words
    assert "non finite" in words and "timed out" in words
    assert set(figures_of(page)) == {
        *(f"front-{i}" for i in range(6)),
        "parallel",
        "progress",
        "scores",
        "recipe",
        "inspection",
    }


def test_report_is_self_contained(finished, tmp_path):
    page = page_of(finished.results, tmp_path)
    assert "default-src 'none'" in page
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"""\b(src|href|srcset|action)\s*=""", markup)
    assert "@import" not in page.partition("</style>")[0] and "url(" not in page.partition("</style>")[0]
    assert page.count("<script") - page.count("\\u003cscript") >= 3
    assert len(page) < 8e6


def test_commands_and_search_file_rebuild_it(finished, tmp_path, storage):
    results = finished.results
    page = page_of(results, tmp_path)
    number = results.winner.number
    assert f"evomerge export ja-math --candidate {number} --to ja-math-{number} --storage {storage}" in words_of(page)
    (text,) = re.findall(r"<summary>search.yaml</summary><pre>(.*?)</pre>", page, flags=re.DOTALL)
    assert SearchFile.model_validate(yaml.safe_load(html.unescape(text))) == results.file
    (recipe,) = re.findall(r"<pre>(\{.*?\})</pre>", page, flags=re.DOTALL)
    assert json.loads(html.unescape(recipe)) == json.loads(results.winner.recipe_json)


def test_passwords_are_masked(finished, tmp_path):
    results = finished.results
    results.record.store.storage = "postgresql://ann:hunter2@db.local/merges"
    file = results.file.model_copy(update={"storage": results.record.store.storage})
    page = page_of(type(results)(results.record, file, results.candidates), tmp_path)
    assert "hunter2" not in page and "postgresql://ann:***@db.local/merges" in words_of(page)


def test_names_cannot_inject(make_search, tmp_path):
    evil = "<script>alert(1)</script>"
    search = make_search(
        sources={"base": f"m/{evil}", "experts": [{"path": "a", "name": evil}, {"path": "b", "name": "</script>b"}]},
        objectives=[{"task": f"{evil}{i}", "metric": "acc</script><img src=x onerror=alert(2)>"} for i in range(3)],
    )
    search.add_seeds()
    search.add_candidates(10, fail_every=3)
    search.conclude()
    page = page_of(search.results, tmp_path)
    assert evil not in page and "<img" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert page.count("</script>") == 3
    assert evil in words_of(page)
    assert evil not in json.dumps(figures_of(page))  # Plotly reads a little HTML in labels


def test_unfinished_search_says_so(make_search, tmp_path):
    search = make_search()
    search.add_seeds()
    search.add_candidates(5)
    results = search.results
    page = page_of(results, tmp_path)
    assert f"no winner yet: {results.spent} of 60 evaluations are done" in words_of(page)
    assert "scores" not in figures_of(page) and "the candidate preferred so far" in words_of(page)


def test_search_between_validation_and_test_says_so(make_search, tmp_path):
    search = make_search()
    search.add_seeds()
    search.measure(search.results.front[0], "validation")
    assert "not yet measured on test documents" in words_of(page_of(search.results, tmp_path))


def test_search_without_any_candidate(make_search, tmp_path):
    page = page_of(make_search().results, tmp_path)
    assert "no candidate has been measured" in words_of(page) and set(figures_of(page)) == {"inspection"}


def test_search_of_failures_only(make_search, tmp_path):
    search = make_search()
    recipe = search.space.decode(Genome(search.space.genes.start))
    for _ in range(3):
        search.add(recipe, origin="optimizer", failure=FailureKind.OUT_OF_MEMORY)
    words = words_of(page_of(search.results, tmp_path))
    assert "3 of 3 evaluations failed" in words and "out of memory" in words and "there is no front" in words


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_one_objective(make_search, tmp_path, direction):
    search = make_search(objectives=[{"task": "gsm8k_ja", "direction": direction}])
    search.add_seeds()
    search.add_candidates(10)
    search.conclude()
    results = search.results
    page = page_of(results, tmp_path)
    (winner,) = [row for row in results.table() if row.role == "winner"]
    assert f"scores {interval(winner.estimates['gsm8k_ja/acc'])} on gsm8k_ja/acc" in words_of(page)
    assert ("less is better" in words_of(page)) == (direction == "minimize")
    assert set(figures_of(page)) == {"progress", "scores", "recipe", "inspection"}


def test_a_failed_report_leaves_the_old_one(finished, make_search, tmp_path):
    to = tmp_path / "report.html"
    to.write_text("old")
    other = make_search("other", objectives=[{"task": "law"}])
    with pytest.raises(ValueError, match="cannot be compared"):
        write_report(finished.results, to, others=[other.results])
    to.unlink()
    to.mkdir()
    with pytest.raises(OSError):
        write_report(finished.results, to)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 1 s"), (3599.7, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.slow
def test_browser_draws_every_figure(finished, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    to = tmp_path / "report.html"
    write_report(finished.results, to)
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / 'user'}"]
    command += ["--virtual-time-budget=8000", "--enable-logging=stderr", "--dump-dom", to.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count('class="figure js-plotly-plot"') == done.stdout.count("data-figure=") == 6
    assert "CONSOLE" not in done.stderr, "the page reports errors or refused requests"


def test_costs_count_what_was_measured_and_not_what_was_answered(make_search, tmp_path):
    search = make_search()
    search.add_seeds()
    first = search.results.candidates[0]
    again = search.add(first.recipe, measured=False, origin="optimizer")
    answer = search.outcome(first.recipe, "search")
    source = first.evaluations["search"].id
    search.record.add_evaluation(again, "search", answer, documents_digest="d", told_at=99, answered_from=source)
    search.measure(first, "validation")
    search.add(first.recipe, origin="optimizer", failure=FailureKind.TIMED_OUT)
    results = search.results
    seeds = sum(c.origin == "seed" for c in results.candidates)
    costs = results.costs
    assert costs["search"].documents == seeds * 120 and costs["search"].seconds == seeds * 2.5 + 1.0
    assert costs["validation"].tokens == 61 * 80 and set(costs) == {"search", "validation"}
    assert f"search {seeds + 1} 1 " in words_of(page_of(results, tmp_path))
