"""Prefixes shared by rows are computed once, and scores are those of rows that share nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, family
from hypothesis import given
from hypothesis import strategies as st

from evaluators.encoding import Window
from evaluators.meter import Meter
from evaluators.packing import Row, Want, pack, sequences, tree
from evaluators.prefixes import common_length, share, worthwhile
from evaluators.scoring import score
from evaluators.shared_cache import Prefixes

PREAMBLES = [tuple(range(3, 23)) * 3, tuple(range(3, 13)) + tuple(range(22, 2, -1)) * 2]


def questions(preambles: Any, *, each: int = 8, choices: int = 3) -> list[list[tuple[int, Window]]]:
    """Windows per document; the context of a document is one of ``preambles`` and a question of its own."""
    generator = np.random.default_rng(1)

    def drawn(most: int) -> tuple[int, ...]:
        return tuple(generator.integers(3, 31, generator.integers(1, most)).tolist())

    groups, request = [], 0
    for number in range(each * len(preambles)):
        context = preambles[number % len(preambles)] + drawn(8)
        groups.append([(request + choice, Window(context, drawn(6))) for choice in range(choices)])
        request += choices
    return groups


def meter() -> Meter:
    return Meter(device=torch.device("cpu"), timeout_seconds=100.0)


def packed(rows: list[Row]) -> list[Any]:
    return [
        batch
        for group in share(rows)
        for batch in pack(group.rows, prefix=group.prefix, tokens_per_batch=128, wants_per_batch=64)
    ]


def paths(prefix: tuple[int, ...], row: Row) -> tuple[Any, ...]:
    """What each node and each wanted token of ``row`` has before it."""
    found: list[tuple[int, ...]] = []
    for node, parent in enumerate(row.parents):
        assert parent < node
        found.append((*(found[parent] if parent >= 0 else prefix), row.tokens[node]))
    return tuple(sorted(found)), tuple((found[want.node], want.token, want.request) for want in row.wants)


TOKENS = st.lists(st.integers(3, 5), min_size=1, max_size=4).map(tuple)
DOCUMENTS = st.lists(
    st.tuples(st.sampled_from([40, 90, 150]), TOKENS, st.lists(TOKENS, min_size=1, max_size=3)), min_size=1, max_size=12
)


@given(DOCUMENTS, st.booleans())
def test_sharing_loses_nothing(documents: list[Any], branching: bool) -> None:
    rows, request = [], 0
    for length, question, choices in documents:
        context = (7, 8) * length + question
        windows = [(request + number, Window(context, choice)) for number, choice in enumerate(choices)]
        rows += [tree(windows, max_length=400)] if branching else sequences(windows, max_length=400)
        request += len(choices)
    found: dict[Any, set[tuple[int, ...]]] = {}
    for group in share(rows):
        for row in group.rows:
            nodes, wants = paths(group.prefix, row)
            prefixes = {group.prefix[:stop] for stop in range(1, len(group.prefix) + 1)}
            found[wants] = set(nodes) | prefixes
            assert len(nodes) == len(row.tokens) > 0
    assert found == {paths((), row)[1]: set(paths((), row)[0]) for row in rows}


@given(st.lists(st.lists(st.integers(0, 1), max_size=6).map(lambda bits: tuple(bits) * 60), max_size=12).map(sorted))
def test_spans_are_disjoint_and_share_what_they_say(prefixes: list[tuple[int, ...]]) -> None:
    done = 0
    for span in worthwhile(prefixes, [len(prefix) + 10 for prefix in prefixes]):
        assert done <= span.start < span.stop - 1 < len(prefixes)
        done = span.stop
        assert len({prefix[: span.length] for prefix in prefixes[span.start : span.stop]}) == 1
        assert span.saved > 0


def test_the_deeper_prefixes_win_when_they_save_more() -> None:
    common, deep = (1,) * 20, [(2,) * 300, (3,) * 300]
    prefixes = sorted(common + part + (number,) for part in deep for number in range(5))
    spans = worthwhile(prefixes, [400] * 10)
    assert [(span.start, span.stop, span.length) for span in spans] == [(0, 5, 320), (5, 10, 320)]
    assert worthwhile([(1, 2)] * 3, [20] * 3) == [], "too little to gain"


@pytest.mark.parametrize(("documents", "shares"), [(2, False), (3, True), (4, True)])
def test_five_shots_are_shared_by_a_handful_of_documents(documents: int, shares: bool) -> None:
    """140 tokens of examples before 76 of question and choices; half of four documents' tokens are saved."""
    spans = worthwhile([(1,) * 140 + (number,) for number in range(documents)], [216] * documents)
    assert [(span.start, span.stop, span.length) for span in spans] == ([(0, documents, 140)] if shares else [])


def test_what_is_asked_inside_a_prefix_limits_it() -> None:
    row = Row((1,) * 200, tuple(range(-1, 199)), (Want(99, 1, 0), Want(199, 1, 0)))
    groups = share([row, Row((1,) * 200 + (2,), tuple(range(-1, 200)), (Want(150, 1, 1), Want(200, 1, 1)))] * 4)
    assert max(len(group.prefix) for group in groups) <= 99


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_shared_prefixes_score_what_one_by_one_scores(name: str, attention: str) -> None:
    options = {"sliding_window": None} if name == "mistral" else {}
    model = family(name, attention=attention, max_position_embeddings=128, **options)
    groups = questions(PREAMBLES)
    windows = [window for group in groups for window in group]
    rows = [tree(group, max_length=100) for group in groups[::2]]
    rows += [row for group in groups[1::2] for row in sequences(group, max_length=100)]
    batches = packed(rows)
    assert {batch.prefix[:40] for batch in batches} >= {preamble[:40] for preamble in PREAMBLES}
    with torch.inference_mode():
        found = score(model, batches, requests=len(windows), meter=meter())
        for request, window in windows:
            ids = torch.tensor([window.context + window.continuation])
            logits = model(ids[:, :-1]).logits[0].log_softmax(-1)
            steps = range(len(window.context) - 1, ids.shape[1] - 1)
            assert found.values[request] == pytest.approx(sum(float(logits[i, ids[0, i + 1]]) for i in steps), abs=1e-4)
            assert found.greedy[request] == all(int(logits[i].argmax()) == int(ids[0, i + 1]) for i in steps)


def test_kept_prefixes_are_not_computed_again_and_may_be_prolonged() -> None:
    model = family("llama", max_position_embeddings=128)
    batches = packed([tree(group, max_length=100) for group in questions(PREAMBLES[:1])])
    count = 24
    with torch.inference_mode():
        kept, first, second = Prefixes(), meter(), meter()
        expected = score(model, batches, requests=count, meter=first, prefixes=kept)
        again = score(model, batches, requests=count, meter=second, prefixes=kept)
        np.testing.assert_array_equal(again.values, expected.values)
        prefix = batches[0].prefix
        assert first.cost(documents=0).tokens == second.cost(documents=0).tokens + len(prefix)
        longer, third = (*prefix, 3, 4, 5), meter()
        keys = kept.cache(model, longer, third).layers[1].keys
        assert third.cost(documents=0).tokens == 3
        torch.testing.assert_close(keys, Prefixes().cache(model, longer, meter()).layers[1].keys)


def test_common_length() -> None:
    assert common_length((1, 2, 3), (1, 2, 4, 5)) == 2
    assert common_length((), (1,)) == 0
    assert common_length((1, 2), (1, 2)) == 2
