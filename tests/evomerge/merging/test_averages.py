"""Metrics-weighted averages: weights from losses or scores, and what a merge and a config make of them."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evomerge.merging.checkpoint import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.merging.mergekit_config import from_mergekit, to_mergekit
from search_spaces.genes import Genome
from search_spaces.operators import Mwa
from search_spaces.parameter_space import ParameterSpace, ParameterSpaceSettings
from search_spaces.recipe import Recipe, Source

RecipeOf = Callable[..., Recipe]
METRICS = st.lists(st.floats(0.01, 10), min_size=1, max_size=6).map(tuple)
FORMS = st.sampled_from(["softmax", "ratio"])


@given(metrics=METRICS, form=FORMS, penalty=st.floats(0, 20))
def test_shares_sum_to_one_and_follow_the_order_of_the_losses(metrics, form, penalty):
    shares = Mwa(metrics=metrics, form=form, penalty=penalty).shares
    assert math.fsum(shares) == pytest.approx(1.0)
    for (_, better), (_, worse) in pairwise(sorted(zip(metrics, shares, strict=True))):
        assert better >= worse * (1 - 1e-12)  # the lower loss counts no less


@given(metrics=METRICS, form=FORMS, penalty=st.floats(0, 5))
def test_scores_are_losses_the_other_way_round(metrics, form, penalty):
    turned = tuple(1 / m for m in metrics) if form == "ratio" else tuple(-m for m in metrics)
    losses, scores = (
        Mwa(metrics=metrics, form=form, penalty=penalty),
        Mwa(metrics=turned, form=form, penalty=penalty, direction="maximize"),
    )
    assert losses.shares == pytest.approx(scores.shares)


def test_shares_by_hand():
    assert Mwa(metrics=(1.0, 2.0), form="ratio", penalty=2.0).shares == pytest.approx((0.8, 0.2))
    assert Mwa(metrics=(1.0, 3.0), penalty=0.5).shares == pytest.approx((math.e / (math.e + 1), 1 / (math.e + 1)))
    assert Mwa(metrics=(5.0, 5.0, 5.0)).shares == pytest.approx((1 / 3,) * 3)
    assert Mwa(metrics=(5.0, 1.0, 2.0), penalty=0.0).shares == pytest.approx((1 / 3,) * 3)
    assert Mwa(metrics=(1.0, 1e-300), form="ratio", penalty=1e300).shares == (0.0, 1.0)


def test_the_merge_is_the_mean_of_the_experts(
    engine: MergeEngine, checkpoints: list[Checkpoint], recipe_of: RecipeOf
) -> None:
    operator = Mwa(metrics=(0.9, 0.5, 0.7), penalty=1.5)
    for name in engine.order[::5]:
        expected = sum(s * c.tensor(name).double() for s, c in zip(operator.shares, checkpoints[1:], strict=True))
        torch.testing.assert_close(
            engine.merge_tensor(recipe_of(operator), name).double(), expected, rtol=1e-6, atol=1e-8
        )


def test_as_a_mergekit_config_it_is_linear(family: list[Path], recipe_of: RecipeOf, tmp_path: Path) -> None:
    text = to_mergekit(recipe_of(Mwa(metrics=(1.0, 2.0, 4.0), form="ratio")))
    assert yaml.safe_load(text)["merge_method"] == "linear"
    (tmp_path / "config.yml").write_text(text)
    (block,) = from_mergekit(tmp_path / "config.yml").body.blocks
    assert [w for w in block.operator.weights if w] == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_metrics_are_needed_and_counted():
    with pytest.raises(ValidationError, match=r"mwa needs metrics \(mwa: losses or scores"):
        ParameterSpaceSettings(operator="mwa")
    with pytest.raises(ValidationError, match="no option of ties"):
        ParameterSpaceSettings(operator="ties", metrics=(1.0,))
    with pytest.raises(ValidationError, match="metrics above 0"):
        Mwa(metrics=(0.0, 1.0), form="ratio")
    settings = ParameterSpaceSettings(operator="mwa", metrics=(0.3, 0.4), form="ratio", penalty=(0.0, 9.0))
    sources = tuple(Source(path=f"m{i}") for i in range(4))
    with pytest.raises(ValueError, match=r"one of metrics per expert \(3\), got 2"):
        ParameterSpace(settings=settings, sources=sources, expert_names=("a", "b", "c"), layers=2)
    space = ParameterSpace(settings=settings, sources=sources[:3], expert_names=("a", "b"), layers=2)
    (block,) = space.decode(Genome([7.0])).body.blocks
    assert block.operator == Mwa(metrics=(0.3, 0.4), form="ratio", penalty=7.0)
