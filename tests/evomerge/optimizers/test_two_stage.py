"""Two stages: densities at uniform weights, then penalised weights at the best densities."""

import numpy as np
import pytest

from evomerge.optimizers.contract import Observation
from evomerge.optimizers.two_stage import TwoStage
from search_spaces.genes import Gene, Genes

EXPERTS = 8
GENES = Genes(
    tuple(
        gene
        for i in range(EXPERTS)
        for gene in (Gene(f"weight/e{i}", -1.0, 1.5, 0.5), Gene(f"density/e{i}", 0.1, 1.0, 0.5))
    )
)
TARGET = np.array([0.8, -0.6, *[0.0] * (EXPERTS - 2)])


def made(**settings):
    return TwoStage(GENES, weights=np.ones(1), seed=0, **settings)


def parts(genome):
    weights, densities = genome.values.reshape(EXPERTS, 2).T
    return weights, densities


def drive(optimizer, count, function):
    asked = []
    for _ in range(count):
        genome = optimizer.ask(1)[0]
        asked.append(genome)
        optimizer.tell([Observation(genome, np.array([function(*parts(genome))]))])
    return asked


def test_first_stage_moves_densities_only_and_second_weights_at_the_best_densities():
    def function(weights, densities):
        return -float(np.square(densities - 0.7).sum())

    asked = drive(made(first_stage=30), 60, function)
    first, second = asked[:30], asked[30:]
    assert all((parts(g)[0] == 1.0 / EXPERTS).all() for g in first)
    assert len({tuple(parts(g)[1]) for g in first}) == 30
    best = max(first, key=lambda g: function(*parts(g)))
    assert all((parts(g)[1] == parts(best)[1]).all() for g in second)
    assert len({tuple(parts(g)[0]) for g in second}) == 30
    assert any((parts(g)[0] < 0.0).any() for g in second)


def test_finds_signed_weights():
    asked = drive(made(first_stage=20), 1500, lambda w, d: -float(np.square(w - TARGET).sum()))
    assert parts(asked[-1])[0] == pytest.approx(TARGET, abs=0.1)


def test_penalty_sends_weights_that_do_nothing_to_zero():
    def useful_only(weights, densities):
        return -float(np.square(weights - TARGET)[:2].sum())

    idle = {}
    for penalty in (0.0, 0.5):
        asked = drive(made(first_stage=20, penalty=penalty), 1200, useful_only)
        idle[penalty] = np.abs(np.array([parts(g)[0][2:] for g in asked[-20:]])).mean()
    assert idle[0.5] < 0.02 < idle[0.0]


def test_penalty_is_not_part_of_the_first_stage():
    seen = [drive(made(first_stage=40, penalty=p), 40, lambda w, d: -float(np.square(d - 0.7).sum())) for p in (0, 9)]
    assert seen[0] == seen[1]


def test_late_points_of_the_first_stage_do_not_disturb_the_second():
    optimizer = made(first_stage=12)
    late = optimizer.ask(1)[0]
    drive(optimizer, 20, lambda w, d: -float(np.square(d - 0.7).sum()))
    undisturbed = made(first_stage=12)
    undisturbed.ask(1)
    drive(undisturbed, 20, lambda w, d: -float(np.square(d - 0.7).sum()))
    optimizer.tell([Observation(late, np.array([100.0]))])
    assert optimizer.ask(20) == undisturbed.ask(20)


def test_a_first_stage_of_failures_goes_on_until_something_succeeds():
    optimizer = made(first_stage=5)
    for _ in range(30):
        optimizer.tell([Observation(optimizer.ask(1)[0], None)])
    assert (parts(optimizer.ask(1)[0])[0] == 1.0 / EXPERTS).all()


@pytest.mark.parametrize("knob", ["weight", "density"])
def test_a_space_without_densities_or_weights_is_refused(knob):
    lacking = Genes(tuple(gene for gene in GENES.genes if gene.name.startswith(knob)))
    with pytest.raises(ValueError, match=f"two_stage needs genes for densities and weights, .* genes for {knob}; use"):
        TwoStage(lacking, weights=np.ones(1), seed=0)
