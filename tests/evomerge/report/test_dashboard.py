"""The dashboard without a browser: what its pages say, what a click chooses, who may look, what hostile names do."""

from __future__ import annotations

import json
import sqlite3

import numpy as np
import pytest

pytest.importorskip("dash")
pytest.importorskip("waitress")

from plotly.utils import PlotlyJSONEncoder

from evomerge import figures
from evomerge.compared import compare
from evomerge.dashboard import callbacks, guard, parts, sections
from evomerge.dashboard.app import Server, make_app
from evomerge.dashboard.links import chosen, query, search_name, search_path
from evomerge.dashboard.live import Live, version
from evomerge.errors import BadSearch, UserMistake
from evomerge.figures.costs import PARTS, seconds_by_part

TOKEN = "a-long-secret"
EVIL = "<img src=x onerror=alert(1)>"


def text_of(children):
    """Everything of components as JSON, which is how they reach the browser."""
    return json.dumps(children, cls=PlotlyJSONEncoder)


@pytest.fixture
def live(finished, storage):
    return Live(storage)


def client(live, *, token=None, host="127.0.0.1"):
    return make_app(live, token=token, host=host, port=8050).test_client()


# ---------------------------------------------------------------- who may look


def test_without_the_token_nothing_is_shown(live):
    asked = client(live, token=TOKEN)
    for path in ("/", "/_dash-layout", "/_dash-dependencies", "/assets/style.css", "/?token=wrong"):
        answer = asked.get(path)
        assert answer.status_code == 401
        assert "ja-math" not in answer.text
    assert asked.post("/_dash-update-component", json={}).status_code == 401


def test_the_token_is_exchanged_for_a_cookie_and_leaves_the_address(live):
    asked = client(live, token=TOKEN)
    answer = asked.get(f"/search/ja-math?token={TOKEN}")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/search/ja-math")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert asked.get("/_dash-layout").status_code == 200


def test_the_redirect_stays_here(live):
    asked = client(live, token=TOKEN)
    answer = asked.get(f"/?token={TOKEN}", environ_overrides={"PATH_INFO": "//evil.example/"})
    assert answer.headers["Location"] == "/evil.example/"


def test_loopback_answers_to_its_own_names_only(live):
    asked = client(live)
    assert asked.get("/", headers={"Host": "localhost:8050"}).status_code == 200
    assert asked.get("/", headers={"Host": "[::1]:8050"}).status_code == 200
    assert asked.get("/", headers={"Host": "evil.example"}).status_code == 403


def test_every_answer_carries_the_policy(live):
    policy = client(live).get("/").headers["Content-Security-Policy"]
    parts = dict(part.split(" ", 1) for part in policy.split("; "))
    assert parts["default-src"] == "'none'"
    assert parts["connect-src"] == "'self'"
    assert "unsafe" not in parts["script-src"]
    assert "http" not in policy


def test_it_only_reads(live):
    assert client(live).put("/").status_code == 405
    assert client(live).delete("/_dash-layout").status_code == 405


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("gpu7", False)])
def test_a_token_is_made_up_where_others_can_come(host, local):
    assert guard.is_loopback(host) == local


def test_a_server_for_others_has_a_token(storage, finished):
    server = Server(storage, host="0.0.0.0", port=0)
    try:
        assert server.token
        assert len(server.token) >= 32
        assert server.address("a/b").endswith(f"/search/a%2Fb?token={server.token}")
        with pytest.raises(UserMistake, match="cannot listen on"):
            Server(storage, host="0.0.0.0", port=server.port)
    finally:
        server.close()


# ---------------------------------------------------------------- what is chosen


@pytest.mark.parametrize("name", ["ja-math", "a/b", "100 %", "日本", EVIL, ".."])
def test_addresses_hold_any_name(name):
    assert search_name(search_path(name)) == name
    assert search_path(name).count("/") == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("?candidate=12", 12),
        ("?candidate=-1", None),
        ("?candidate=x", None),
        ("", None),
        (None, None),
        ("?candidate=" + "9" * 40, None),
    ],
)
def test_numbers_in_addresses(text, expected):
    assert chosen(text) == expected


def test_clicks_sliders_and_numbers_choose(finished):
    results = finished.results
    click = {"points": [{"id": "7"}]}

    def new(trigger, numbers=(None, None), factors=(1, 1, 1, 1), search=""):
        return callbacks.chosen_query(results, trigger, click, numbers, factors, search)

    assert new("front-figure") == "?candidate=7"
    assert new("front-figure", search="?candidate=7") is None
    assert new("front-figure", search="?candidate=1&with=3") == "?candidate=7&with=3"
    assert new("first", numbers=(5, 3)) == "?candidate=5&with=3"
    picked = callbacks.pick(results, (0, 0, 2, 0))
    assert new({"slider": 2}, factors=(0, 0, 2, 0)) == query(picked.number)
    assert callbacks.clicked({"points": [{"id": "no"}]}) is None


def test_sliders_pick_as_the_command_line_does(finished):
    from evomerge.export import choose

    results = finished.results
    for position, name in enumerate(results.chooser.names):
        factors = [2.0 if i == position else 0.0 for i in range(4)]
        expected = choose(results, candidate=None, best=False, prefer=f"{name}=2")
        assert callbacks.pick(results, factors) == expected
    assert callbacks.pick(results, [0, 0, 0, 0]) == callbacks.pick(results, [1, 1, 1, 1])


def test_points_of_every_view_name_their_candidate(finished):
    results = finished.results
    names = results.chooser.names
    for view in ("plane", "space", "parallel"):
        figure = callbacks.front(results, view, names[:3])
        drawn = {point for trace in figure.data if trace.ids is not None for point in trace.ids}
        assert {str(c.number) for c in results.front} <= drawn
    plane = callbacks.front(results, "plane", names[:3])
    for trace in plane.data:
        if (trace.legendgroup or "").startswith("search ") and trace.ids is not None:
            for key, x in zip(trace.ids, trace.x, strict=True):
                assert results.candidate(int(key)).values("search", names)[0] == pytest.approx(x, abs=1e-6)


def test_equal_axes_give_way(finished):
    names = finished.results.chooser.names
    figure = callbacks.front(finished.results, "plane", (names[1], names[1], None))
    assert figure.layout.xaxis.title.text != figure.layout.yaxis.title.text


# ---------------------------------------------------------------- what is shown


def test_pages_of_all_states(make_search, storage):
    live = Live(storage)
    assert "No search is recorded" in text_of(callbacks.page(live, "/"))
    search = make_search()
    steps = (lambda: None, search.add_seeds, lambda: search.add_candidates(20, fail_every=5), search.conclude)
    for step, state in zip(steps, ("interrupted", "interrupted", "interrupted", "finished"), strict=True):
        step()
        results = live.results("ja-math")
        shown = text_of(callbacks.page(live, "/search/ja-math")) + text_of(parts.headline(results))
        assert f"pill {state}" in shown
        for dark in (False, True):
            text_of(sections.tested(results, dark=dark) + sections.costs(results, None, dark=dark))
        callbacks.front(results, "plane", results.chooser.names[:2])
        figures.progress_figure(results, over_time=True)
        callbacks.compared(results, "")
    assert "cannot be shown" in text_of(callbacks.page(live, "/search/nothing"))
    assert "no page" in text_of(callbacks.page(live, "/../etc/passwd"))


def test_a_candidate_with_its_scores_recipe_lineage_and_command(finished):
    results = finished.results
    shown = text_of(parts.candidate_card(results, results.winner, dark=False))
    assert f"--candidate {results.winner.number}" in shown
    for split in ("search", "validation", "test"):
        value = results.estimate(results.winner, split)["joint"].value
        assert f"{value:.3f}" in shown


def test_one_objective(make_search, storage):
    search = make_search(objectives=[{"task": "gsm8k_ja"}])
    search.add_seeds()
    results = Live(storage).results("ja-math")
    text_of(callbacks.page(Live(storage), "/search/ja-math"))
    assert not callbacks.front(results, "plane", ("gsm8k_ja/acc",) * 3).data


def test_comparison_counts_every_document_once(finished):
    results = finished.results
    one, other = results.candidates[0], results.winner
    name = results.chooser.names[1]
    found = compare(results, one, other, split="test", objective=name)
    groups = [found.both, found.first, found.second, found.neither]
    assert sorted(i for group in groups for i in group) == results.record.row.plan["documents"]["test"]["code_small"]
    rows = [results.record.document_scores(c.evaluations["test"], name) for c in (one, other)]
    assert len(found.second) == int((rows[1] > rows[0]).sum())
    assert found.mean == pytest.approx(float(np.mean(rows[0] - rows[1])))
    assert found.difference.low <= found.mean <= found.difference.high
    with pytest.raises(BadSearch, match="not measured on all validation"):
        compare(results, one, other, split="validation", objective=name)


def test_seconds_by_part_add_up(finished):
    results = finished.results
    rows = results.fresh["search"]
    seconds = seconds_by_part(results.candidates, rows)
    assert seconds.shape == (len(rows), len(PARTS))
    assert (seconds >= 0.0).all()
    whole = results.candidates.costs[rows, 0]
    np.testing.assert_allclose(seconds[:, :3].sum(axis=1), whole)


def test_a_growing_record_is_noticed(make_search, storage):
    search = make_search()
    search.add_seeds()
    live = Live(storage)
    before = live.results("ja-math")
    assert live.results("ja-math") is before
    search.add_candidates(1)
    now = live.results("ja-math")
    assert version(now) != version(before)
    assert len(now.candidates) == len(before.candidates) + 1


def test_the_newest_search_is_read_ahead(finished, make_search, storage):
    make_search("newest").add_seeds()
    live = Live(storage)
    callbacks.read_ahead(live, None)
    assert list(live.known) == ["newest"]
    callbacks.read_ahead(live, "ja-math")
    assert "front" in vars(live.known["ja-math"])
    callbacks.read_ahead(live, "gone")  # the page says so


# ---------------------------------------------------------------- hostile records


def test_hostile_names_are_texts(make_search, storage):
    objectives = [{"task": EVIL}, {"task": "t" * 3000}]
    sources = {"base": f"models/{EVIL}", "experts": ["models/a", "models/b"]}
    search = make_search(objectives=objectives, sources=sources)
    search.add_seeds()
    search.add_candidates(12, fail_every=5)
    results = Live(storage).results("ja-math")
    for view in ("plane", "parallel"):
        drawn = callbacks.front(results, view, results.chooser.names).to_json()
        assert "<img" not in drawn.replace("\\u003c", "<")
    # In components a name is a text child, which React escapes; none is put into markup.
    for shown in (callbacks.page(Live(storage), "/search/ja-math"), sections.costs(results, EVIL, dark=True)):
        assert "dangerously" not in text_of(shown)


def test_a_broken_search_does_not_hide_the_others(finished, make_search, storage, tmp_path):
    make_search("broken")
    make_search("deep")
    connection = sqlite3.connect(tmp_path / "evomerge.db")
    connection.execute("UPDATE searches SET file = '{\"name\": 3}' WHERE name = 'broken'")
    connection.execute("UPDATE searches SET plan = ? WHERE name = 'deep'", ("[" * 100_000,))
    connection.commit()
    shown = text_of(callbacks.page(Live(storage), "/"))
    assert "pill finished" in shown
    assert shown.count('"card"') == 3
    assert "cannot be" in text_of(callbacks.page(Live(storage), "/search/broken"))


def test_bytes_that_are_no_text_are_said(finished, storage, tmp_path):
    connection = sqlite3.connect(tmp_path / "evomerge.db")
    connection.execute("UPDATE searches SET name = CAST(x'ff41' AS TEXT)")
    connection.commit()
    assert "cannot be shown" in text_of(callbacks.page(Live(storage), "/"))


def test_huge_and_odd_texts_are_cut():
    assert len(parts.clipped("x" * 10**6)) < 600
    parts.clipped("half \ud800 a character").encode()


def test_huge_recipes_are_cut(finished):
    results = finished.results
    recipe = json.loads(results.winner.recipe_json)
    recipe["comment"] = "x" * 10**6
    from dataclasses import replace

    changed = replace(results.winner, recipe_json=json.dumps(recipe))
    shown = text_of(parts.recipe(results, changed, dark=False))
    assert len(shown) < 400_000
    assert "cannot be drawn" in shown
