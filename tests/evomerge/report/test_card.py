"""Cards of exported models: what the Hub reads, what people read."""

import re

import pytest
from huggingface_hub import ModelCard

from evomerge.card import plain_card, search_card
from search_spaces.operators import Fisher, IsoC
from search_spaces.recipe import Block, Blocks, Recipe, Source


def card_of(results, candidate):
    card = ModelCard(search_card(results, candidate))
    return card, card.data.to_dict()


def test_the_winners_test_scores_are_there_for_people_and_for_the_hub(finished):
    results = finished.results
    card, data = card_of(results, results.winner)
    estimates = results.estimate(results.winner, "test")
    found = {result.dataset_name: result for result in card.data.eval_results}
    for objective in results.objectives:
        estimate = estimates[objective.name]
        assert found[objective.task].metric_value == pytest.approx(estimate.value, abs=1e-6)
        assert found[objective.task].metric_type == objective.metric
        assert f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" in card.text
    assert data["tags"] == ["merge", "evomerge"]
    text = re.search(r"```json\n(.*)\n```", card.text).group(1)
    assert Recipe.model_validate_json(text).digest == results.winner.recipe_digest


def test_folders_are_no_base_models_but_hub_ids_are(finished):
    results = finished.results
    recipe = results.winner.recipe
    assert ModelCard(plain_card(recipe, "x")).data.to_dict()["base_model"] == [s.path for s in recipe.sources]
    local = [source.model_copy(update={"path": f"/home/ann/{source.path}"}) for source in recipe.sources]
    card = ModelCard(plain_card(recipe.model_copy(update={"sources": tuple(local)}), "x"))
    assert "base_model" not in card.data.to_dict()
    assert "/home/ann/models/base" in card.text


def test_bits_are_promised_only_where_they_are_kept(finished):
    """Statistics on calibration prompts are rounded as the machine that computes them does."""
    recipe = finished.results.winner.recipe
    assert "rebuilds it bit for bit: `evomerge merge" in plain_card(recipe, "x")
    fisher = Fisher(weights=(0.5,) * len(recipe.experts), prompts="0" * 64)
    calibrated = recipe.model_copy(update={"body": Blocks(blocks=(Block(layers=(0, 4), operator=fisher),))})
    card = plain_card(calibrated, "x")
    assert "rebuilds it bit for bit" not in card
    assert "bit for bit on an equal machine with as many threads" in card


def test_the_card_of_decomposed_matrices_promises_no_more_than_lapack_does() -> None:
    block = Block(layers=(0, 2), operator=IsoC())
    recipe = Recipe(sources=(Source(path="base"), Source(path="one")), dtype="float32", body=Blocks(blocks=(block,)))
    card = plain_card(recipe, "x")
    assert "rebuilds it bit for bit" not in card
    assert "others decompose matrices differently" in card


def test_search_scores_are_not_quoted_as_results(finished):
    results = finished.results
    only_searched = next(c for c in results.candidates if c.state == "measured" and len(c.evaluations) == 1)
    card, data = card_of(results, only_searched)
    assert "model-index" not in data
    assert "not quoted as results" in card.text


def test_markup_in_names_stays_text(make_search):
    search = make_search(objectives=[{"task": "a|b<script>"}])
    search.add_seeds()
    candidate = search.results.candidate(0)
    search.measure(candidate, "test")
    card, _ = card_of(search.results, search.results.candidate(0))
    assert "<script>" not in card.text.partition("<details>")[0]
    assert r"| a\|b\<script\>/acc |" in card.text
