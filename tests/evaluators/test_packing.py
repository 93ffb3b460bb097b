"""Rows that branch score what plain rows score, whatever the packing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, family
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.encoding import Window
from evaluators.meter import Meter
from evaluators.packing import collate, pack, sequences, tree
from evaluators.scoring import can_branch, score

TOKEN = st.integers(3, 30)
TOKENS = st.lists(TOKEN, min_size=1, max_size=6).map(tuple)
WINDOWS = st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=5)).map(
    lambda drawn: [(number, Window(drawn[0], answer)) for number, answer in enumerate(drawn[1])]
)


def flat(windows: list[tuple[int, Window]], max_length: int) -> list[tuple[int, ...]]:
    return [(w.context + w.continuation)[-(max_length + 1) :] for _, w in windows]


@given(WINDOWS, st.integers(6, 20))
def test_a_tree_holds_every_sequence_and_nothing_twice(windows: list[tuple[int, Window]], max_length: int) -> None:
    row = tree(windows, max_length=max_length)
    paths = []
    for node, parent in enumerate(row.parents):
        assert parent < node, "parents come first"
        paths.append((*(paths[parent] if parent >= 0 else ()), row.tokens[node]))
    assert len(set(paths)) == len(paths)
    prefixes = {full[:stop] for full in flat(windows, max_length) for stop in range(1, len(full))}
    assert set(paths) == prefixes
    assert row.depths == [len(path) - 1 for path in paths]
    for node, path in enumerate(paths):
        follows = [other for other, longer in enumerate(paths) if longer[: len(path)] == path]
        assert follows == list(range(node, row.last[node] + 1)), "what follows a node stands together"
    for request, window in windows:
        wanted = [want.token for want in row.wants if want.request == request]
        assert tuple(wanted) == window.continuation


@given(WINDOWS)
def test_plain_rows_have_no_branches_and_are_distinct(windows: list[tuple[int, Window]]) -> None:
    rows = sequences(windows, max_length=30)
    assert not any(row.branches for row in rows)
    assert len({row.tokens for row in rows}) == len(rows) == len({full[:-1] for full in flat(windows, 30)})


@given(st.lists(WINDOWS, min_size=1, max_size=8), st.integers(1, 60), st.integers(1, 20))
def test_packing_loses_nothing_and_keeps_its_limits(groups: list[Any], tokens: int, wants: int) -> None:
    rows = [tree(windows, max_length=30) for windows in groups]
    batches = pack(rows, tokens_per_batch=tokens, wants_per_batch=wants)
    packed = [row for batch in batches for row in batch.rows]
    assert sorted(row.tokens for row in packed) == sorted(row.tokens for row in rows)
    for batch in batches:
        assert batch.ids.numel() <= tokens or len(batch.rows) == 1
        assert len(batch.targets) <= wants or len(batch.rows) == 1
        assert (batch.last is None) == (not any(row.branches for row in batch.rows))


def questions() -> list[list[tuple[int, Window]]]:
    generator = np.random.default_rng(0)
    groups, request = [], 0
    for _ in range(6):
        context = tuple(generator.integers(3, 31, generator.integers(1, 20)).tolist())
        group = []
        for _ in range(4):
            group.append((request, Window(context, tuple(generator.integers(3, 6, generator.integers(1, 6)).tolist()))))
            request += 1
        groups.append(group)
    return groups


def scores(model: Any, rows: list[Any], count: int) -> Any:
    meter = Meter(device=torch.device("cpu"), timeout_seconds=100.0)
    with torch.inference_mode():
        return score(model, pack(rows, tokens_per_batch=128, wants_per_batch=64), requests=count, meter=meter)


@given(st.lists(WINDOWS, min_size=1, max_size=3), st.integers(0, 3))
def test_a_token_sees_its_prefix_and_what_it_follows(groups: list[Any], before: int) -> None:
    rows = [tree(windows, max_length=30) for windows in groups]
    batch = collate(rows, (1,) * before)
    visible = batch.visible(torch.device("cpu"))
    for number, row in enumerate(rows):
        for node in range(batch.ids.shape[1]):
            expected = {node}
            if node < len(row.tokens):
                while (parent := row.parents[min(expected)]) >= 0:
                    expected.add(parent)
            if visible is None:
                assert expected == set(range(node + 1)) or node >= len(row.tokens)
                continue
            seen = visible[min(number, len(visible) - 1), 0, node]
            assert bool(seen[:before].all())
            if node < len(row.tokens):
                assert set(seen[before:].nonzero().flatten().tolist()) == expected
            assert bool(seen.any())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_branching_scores_what_one_by_one_scores(name: str, attention: str) -> None:
    options = {"sliding_window": None} if name == "mistral" else {}
    model = family(name, attention=attention, **options)
    assert can_branch(model)
    groups = questions()
    flat_windows = [window for group in groups for window in group]
    found = scores(model, [tree(group, max_length=60) for group in groups], len(flat_windows))
    for request, window in flat_windows:
        ids = torch.tensor([window.context + window.continuation])
        with torch.inference_mode():
            logits = model(ids[:, :-1]).logits[0].log_softmax(-1)
        steps = range(len(window.context) - 1, ids.shape[1] - 1)
        assert found.values[request] == pytest.approx(sum(float(logits[i, ids[0, i + 1]]) for i in steps), abs=1e-4)
        assert found.greedy[request] == all(int(logits[i].argmax()) == int(ids[0, i + 1]) for i in steps)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
        ("gemma2", {"head_dim": 8, "sliding_window": 8, "attention": "eager"}),
        ("gpt2", {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    ],
)
def test_other_attention_does_not_branch_and_scores_right(name: str, options: dict[str, Any]) -> None:
    model = family(name, **options)
    assert not can_branch(model)
    windows = [window for group in questions() for window in group]
    found = scores(model, sequences(windows, max_length=60), len(windows))
    for request, window in windows[::5]:
        ids = torch.tensor([window.context + window.continuation])
        with torch.inference_mode():
            logits = model(ids[:, :-1]).logits[0].float().log_softmax(-1)
        steps = range(len(window.context) - 1, ids.shape[1] - 1)
        assert found.values[request] == pytest.approx(sum(float(logits[i, ids[0, i + 1]]) for i in steps), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_packing_gives_the_same_scores(data: st.DataObject) -> None:
    model = family("llama")
    groups = questions()
    rows = []
    for group in groups:
        plain = data.draw(st.booleans())
        rows += sequences(group, max_length=60) if plain else [tree(group, max_length=60)]
    expected = scores(model, [tree(group, max_length=60) for group in groups], 24)
    np.testing.assert_allclose(scores(model, rows, 24).values, expected.values, atol=1e-4)
