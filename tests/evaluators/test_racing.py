"""Racing on numbers: blocks, the small-sample rule, and evaluation block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api import metrics as lm_eval_metrics
from scipy import stats

from evaluators.blockwise import BlockwiseEvaluator
from evaluators.errors import TaskError
from evaluators.evaluation import Cost, Documents, Evaluation, Failure, FailureKind, Score
from evaluators.evaluator import LmEvalEvaluator
from evaluators.objective import EvaluationSettings, Objective, RacingSettings
from evaluators.objective_kinds import Likelihood
from evaluators.raceable import refuse_unraceable
from evaluators.racing import Par, Race, Rival, blocks, estimated, judge, mean_difference, probability_positive
from evaluators.tasks import TaskSuite

A, B = Objective(task="a"), Objective(task="b")
NEVER, EAGER = RacingSettings(threshold=1e-9), RacingSettings(threshold=0.49)


@given(
    counts=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    first=st.integers(2, 40),
    growth=st.floats(1.05, 10.0),
)
def test_blocks_are_the_documents_in_order_and_every_task_begins_at_once(counts, first, growth):
    documents = Documents({f"t{i}": tuple(range(100 * i, 100 * i + count)) for i, count in enumerate(counts)})
    cut = blocks(documents, RacingSettings(first=first, growth=growth))
    for task, ids in documents.ids.items():
        assert task in cut[0].ids
        assert sum((block.ids.get(task, ()) for block in cut), ()) == ids
    assert len(cut) == 1 or max(map(len, cut[0].ids.values())) == math.ceil(first / max(counts) * max(counts))


def test_blocks_grow_by_the_factor_and_hold_equal_shares():
    documents = Documents({"long": tuple(range(64)), "short": tuple(range(32))})
    cut = blocks(documents, RacingSettings(first=8, growth=2.0))
    assert [len(block.ids["long"]) for block in cut] == [8, 8, 16, 32]
    assert [len(block.ids["short"]) for block in cut] == [4, 4, 8, 16]


# ------------------------------------------------------------------------- the rule


@given(scores=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30), data=st.data())
def test_who_has_seen_all_documents_has_no_uncertainty_left(scores, data):
    own, par = np.array(scores).T
    n = data.draw(st.integers(1, len(own)))
    spread = mean_difference(own[:n], par, spread=1.0)
    assert spread.variance >= 0.0
    if n == len(own):
        assert spread.variance == 0.0
        assert spread.mean == pytest.approx(own.mean() - par.mean(), abs=1e-12)
    else:
        assert spread.variance > 0.0  # also of equal differences


def test_the_variance_is_cochrans_shrunk_to_the_prior():
    own, par = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    differences = own - par[:4]
    s2 = (np.square(differences - differences.mean()).sum() + 2.0 * 0.25) / (3 + 2.0)
    spread = mean_difference(own, par, spread=1.0)
    assert spread == pytest.approx((differences.mean(), s2 / 4 * (1 - 4 / 8), 5.0))


def test_the_chance_is_students_and_welchs():
    part = mean_difference(np.array([1.0, 0.0, 1.0]), np.full(9, 0.5), spread=1.0)
    expected = stats.t.cdf(0.1 / math.sqrt(part.variance), part.freedom)
    assert probability_positive(0.1, [part]) == pytest.approx(expected, abs=1e-12)
    equal = probability_positive(0.1, [part, part])
    assert equal == pytest.approx(stats.t.cdf(0.1 / math.sqrt(2 * part.variance), 2 * part.freedom), abs=1e-12)


@pytest.mark.parametrize("solved", [0.1, 0.4, 0.7, 0.9])
def test_the_rule_is_honest_with_few_documents(solved):
    """Of candidates that are a little better than the rival, no larger share is given up than the threshold says."""
    generator = np.random.default_rng(0)
    lost = {0.05: 0, 0.2: 0}
    repeats = 3000
    for _ in range(repeats):
        theirs = (generator.random(64) < solved).astype(float)
        own = np.where(generator.random(64) < 0.5, theirs, generator.random(64) < solved).astype(float)
        if own.mean() <= theirs.mean():
            own, theirs = theirs, own
        if own.mean() == theirs.mean():
            continue
        race = race_against(theirs)
        for threshold in lost:
            lost[threshold] += judge(race, [A], {A.name: own[:8]}, threshold=threshold) is not None
    for threshold, count in lost.items():
        assert count / repeats <= threshold


def race_against(theirs, *, candidate=7):
    par = Par(theirs, float(theirs.min()), float(theirs.max()))
    return Race({A.name: par}, (5,), (Rival(candidate, np.array([theirs.mean()])),), np.ones((1, 1)), NEVER)


def test_estimates_do_not_mind_easy_documents_at_the_beginning():
    par = np.array([1.0] * 8 + [0.0] * 24)
    own = par.copy()
    own[[1, 20]] = 0.0, 1.0
    assert own[:8].mean() == pytest.approx(0.875)
    assert estimated(Par(par, 0.0, 1.0), own[:8]).mean == pytest.approx(par.mean() - 1 / 8)


def two_objectives(a, b, criteria):
    scores = {A.name: np.full(40, a), B.name: np.full(40, b)}
    par = {name: Par(values, 0.0, 1.0) for name, values in scores.items()}
    return Race(par, (5,), (Rival(3, np.array([a, b])),), np.array(criteria), NEVER)


def test_a_front_keeps_who_is_worse_in_one_objective_only():
    seen = {A.name: np.ones(24), B.name: np.zeros(24)}
    front = two_objectives(0.5, 0.5, [[1.0, 0.0], [0.0, 1.0]])
    assert judge(front, [A, B], seen, threshold=0.1) is None
    mean = two_objectives(0.5, 0.9, [[0.5, 0.5]])
    assert judge(mean, [A, B], seen, threshold=0.1)[0] == 3


def test_a_minimised_objective_turns_the_race_around():
    race = Race(
        {A.name: Par(np.full(40, 0.5), 0.0, 1.0)}, (5,), (Rival(3, np.array([0.5])),), np.array([[-1.0]]), NEVER
    )
    assert judge(race, [A], {A.name: np.zeros(24)}, threshold=0.1) is None
    assert judge(race, [A], {A.name: np.ones(24)}, threshold=0.1) is not None


def test_two_metrics_of_one_task_are_not_counted_as_independent():
    """The mean of a metric with itself is as uncertain as the metric."""
    twin = Objective(task="a", metric="acc_norm")
    theirs = np.array([1.0, 0.0] * 20)
    own = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    par = Par(theirs, 0.0, 1.0)
    alone = Race({A.name: par}, (5,), (Rival(3, np.array([0.5])),), np.ones((1, 1)), NEVER)
    both = Race({A.name: par, twin.name: par}, (5,), (Rival(3, np.array([0.5, 0.5])),), np.full((1, 2), 0.5), NEVER)
    one = judge(alone, [A], {A.name: own}, threshold=0.999)
    assert judge(both, [A, twin], {A.name: own, twin.name: own}, threshold=0.999) == pytest.approx(one)


# ------------------------------------------------------------------------- block by block


@dataclass
class Table:
    """An evaluator whose models are (documents,) scores of each task."""

    fails_at_call: int = 0
    calls: int = 0

    def evaluate(self, model, documents):
        self.calls += 1
        cost = Cost(seconds=1.0, tokens=10, documents=documents.count)
        if self.calls == self.fails_at_call:
            return Failure(FailureKind.NON_FINITE, "logits are not finite", cost)
        scores = {f"{task}/acc": Score(0.0, None, model[task][list(ids)]) for task, ids in documents.ids.items()}
        ties = {f"{task}/acc": float(model[task][list(ids)].mean()) for task, ids in documents.ids.items()}
        return Evaluation(documents.digest, scores, ties, cost, truncated={"a": 1} if "a" in documents.ids else {})


def model_of(seed, *, a=0.5, b=0.5):
    generator = np.random.default_rng(seed)
    return {"a": (generator.random(50) < a).astype(float), "b": (generator.random(30) < b).astype(float)}


DOCUMENTS = Documents({"a": tuple(range(49, -1, -1)), "b": tuple(range(30))})


def race_of(model, settings=NEVER):
    scores = {f"{task}/acc": model[task][list(ids)] for task, ids in DOCUMENTS.ids.items()}
    par = {name: Par(values, 0.0, 1.0) for name, values in scores.items()}
    return Race(
        par, (5,), (Rival(5, np.array([par[o.name].scores.mean() for o in (A, B)])),), np.full((1, 2), 0.5), settings
    )


def test_a_race_to_the_end_gives_the_scores_of_all_documents():
    model = model_of(1)
    outcome = BlockwiseEvaluator(Table(), (A, B)).evaluate(model, DOCUMENTS, race_of(model_of(2)))
    assert outcome.stopped is None
    assert outcome.documents_digest == DOCUMENTS.digest
    assert outcome.cost.documents == 80
    assert outcome.truncated == {"a": 4}
    for task, ids in DOCUMENTS.ids.items():
        score = outcome.scores[f"{task}/acc"]
        assert score.documents.tolist() == model[task][list(ids)].tolist()
        assert score.value == model[task].mean()
        assert outcome.tie_breaks[f"{task}/acc"] == pytest.approx(model[task].mean())


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_means_and_standard_errors_are_lm_evals(values):
    score = Score.mean_of(np.array(values))
    assert score.value == lm_eval_metrics.mean(values)
    assert score.standard_error == lm_eval_metrics.mean_stderr(values)


def test_a_hopeless_candidate_is_an_estimate_from_the_first_documents():
    best, bad = model_of(3, a=0.95, b=0.95), model_of(4, a=0.02, b=0.02)
    outcome = BlockwiseEvaluator(Table(), (A, B)).evaluate(bad, DOCUMENTS, race_of(best, RacingSettings()))
    stop = outcome.stopped
    assert stop is not None
    assert (stop.rival, stop.of, stop.par) == (5, 80, (5,))
    assert stop.documents == outcome.cost.documents < 40
    assert stop.chance < RacingSettings().threshold
    seen = outcome.scores["a/acc"]
    assert len(seen.documents) + len(outcome.scores["b/acc"].documents) == stop.documents
    assert 0.0 <= seen.value <= 1.0
    assert seen.standard_error > 0.0


def test_a_failure_ends_the_race_with_what_it_cost():
    evaluator = BlockwiseEvaluator(Table(fails_at_call=2), (A, B))
    outcome = evaluator.evaluate(model_of(1), DOCUMENTS, race_of(model_of(1)))
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.cost.seconds) == (FailureKind.NON_FINITE, 2.0)


def test_the_time_out_counts_all_blocks():
    evaluator = BlockwiseEvaluator(Table(), (A, B), timeout_seconds=1.5)
    outcome = evaluator.evaluate(model_of(1), DOCUMENTS, race_of(model_of(1)))
    assert isinstance(outcome, Failure)
    assert outcome.kind == FailureKind.TIMED_OUT


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), quality=st.floats(0.05, 0.95))
def test_an_estimate_stays_in_the_range_of_scores(seed, quality):
    race = race_of(model_of(seed + 1, a=0.9, b=0.9), EAGER)
    model = model_of(seed, a=quality, b=quality)
    outcome = BlockwiseEvaluator(Table(), (A, B)).evaluate(model, DOCUMENTS, race)
    assert all(0.0 <= score.value <= 1.0 for score in outcome.scores.values())


# ------------------------------------------------------------------------- on models and tasks


def test_blocks_of_a_live_model_add_up_to_its_evaluation(tasks, settings, model, tokenizer):
    tasks.multiple_choice("mc")
    tasks.generation("gen")
    objectives = (Objective(task="mc"), Objective(task="gen", metric="exact_match"))
    suite = TaskSuite.load(objectives, settings())
    evaluator = LmEvalEvaluator(suite, tokenizer, settings=settings(), max_length=128)
    documents = Documents({"mc": tuple(range(20)), "gen": tuple(range(16))})
    full = evaluator.evaluate(model, documents)
    par = {name: Par(score.documents, 0.0, 1.0) for name, score in full.scores.items()}
    race = Race(par, (5,), (Rival(0, np.array([0.0, 0.0])),), np.eye(2), NEVER)
    raced = BlockwiseEvaluator(evaluator, objectives).evaluate(model, documents, race)
    for name, score in full.scores.items():
        assert raced.scores[name].documents.tolist() == score.documents.tolist()
        assert raced.scores[name].value == score.value
        assert raced.scores[name].standard_error == score.standard_error
    assert raced.tie_breaks["mc/acc"] == pytest.approx(full.tie_breaks["mc/acc"], abs=1e-4)
    assert raced.cost.documents == 36


def test_metrics_that_are_no_mean_are_refused_by_name(tasks, settings):
    tasks.multiple_choice("mc", metric_list=[{"metric": "f1", "aggregation": "f1", "higher_is_better": True}])
    objectives = (Objective(task="mc", metric="f1"),)
    with pytest.raises(TaskError, match="mc/f1 is aggregated by f1_score"):
        refuse_unraceable(TaskSuite.load(objectives, settings()), objectives)


def test_objectives_of_other_kinds_are_refused_by_name(tasks, settings):
    tasks.multiple_choice("mc")
    objectives = (Objective(task="mc", metric="acc"), Likelihood(kind="likelihood", task="mc"))
    with pytest.raises(TaskError, match="metrics of single tasks, got mc/likelihood"):
        refuse_unraceable(TaskSuite.load(objectives, settings()), objectives)


def test_racing_is_off_on_or_set():
    assert EvaluationSettings().racing is None
    assert EvaluationSettings(racing=False).racing is None
    assert EvaluationSettings(racing=True).racing == RacingSettings()
    assert EvaluationSettings(racing={"first": 16}).racing == RacingSettings(first=16)
