"""Optuna's samplers: failures, late seeds, points that were proposed before, silence."""

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from evomerge.optimizers.contract import Observation
from evomerge.optimizers.optuna_samplers import OptunaSearch, gp, tpe
from evomerge.optimizers.preference import Preference
from search_spaces.genes import Gene, Genes, Genome

GENES = Genes((Gene("a", -1.0, 1.0, 0.0), Gene("b", 0.0, 3.0, 1.0)))
WEIGHTS = np.array([1.0, 3.0])


def told(search):
    """Values of the study's finished trials by genome."""
    trials = search._study.get_trials(states=(TrialState.COMPLETE,))
    return {Genome([trial.params[name] for name in GENES.names]): trial.values for trial in trials}


def test_a_failure_counts_as_the_worst_so_far():
    search = tpe(GENES, objectives=2, seed=0)
    one, other, failed = search.ask(3)
    search.tell([Observation(one, np.array([1.0, 5.0])), Observation(other, np.array([2.0, 4.0]))])
    search.tell([Observation(failed, None)])
    assert told(search)[failed] == [1.0, 4.0]


def test_a_failure_before_any_success_has_no_values():
    search = tpe(GENES, objectives=2, seed=0)
    search.tell([Observation(search.ask(1)[0], None)])
    assert told(search) == {}


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_a_tie_break_orders_equal_values(kind):
    search = tpe(GENES, objectives=2, seed=0) if kind == "tpe" else gp(GENES, preference=Preference(WEIGHTS), seed=0)
    worse, better = search.ask(2)
    search.tell([Observation(worse, np.ones(2), tie_break=0.1), Observation(better, np.ones(2), tie_break=0.2)])
    assert told(search)[better] > told(search)[worse]
    assert told(search)[better] == pytest.approx(told(search)[worse], abs=1e-5)


def test_late_seeds_change_the_scale_of_everything_told_before():
    search = gp(GENES, preference=Preference(WEIGHTS), seed=0)
    first, failed, out = search.ask(3)
    search.tell([Observation(first, np.array([0.5, 20.0])), Observation(failed, None)])
    seeds = [np.array([0.0, 10.0]), np.array([1.0, 40.0])]
    search.tell([Observation(None, values, seed=True) for values in seeds])
    preference = Preference(WEIGHTS)
    for values in seeds:
        preference.see_seed(values)
    expected = preference.scalar(np.array([0.5, 20.0]))
    assert told(search) == {first: [expected], failed: [expected]}
    search.tell([Observation(out, seeds[1])])  # it was out while the study was made anew
    assert told(search)[out] == [pytest.approx(1.0)]
    assert len(told(search)) == 3


def test_seeds_with_a_genome_are_learnt_from():
    search = tpe(GENES, objectives=1, seed=0)
    seed = Genome([0.25, 2.5])
    search.tell([Observation(seed, np.array([7.0]), seed=True)])
    assert told(search) == {seed: [7.0]}


class Stubborn(BaseSampler):
    """Suggests one point for ever, as a model does that is sure of an optimum."""

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return 0.5


def test_a_point_is_not_proposed_twice_even_if_the_sampler_insists():
    search = OptunaSearch(GENES, lambda seed: Stubborn(), seed=0, objectives=1)
    asked = search.ask(5)
    assert asked[0] == Genome([0.5, 0.5])
    assert len(set(asked)) == 5
    assert all(GENES.contains(genome) for genome in asked)
    search.tell([Observation(genome, np.array([1.0])) for genome in asked])
    assert set(told(search)) == set(asked)


def test_says_nothing_and_leaves_the_verbosity_alone(capfd):
    before = optuna.logging.get_verbosity()
    tpe(GENES, objectives=2, seed=0).ask(3)
    gp(GENES, preference=Preference(WEIGHTS), seed=0).ask(3)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before
