"""Why a search stops: each rule alone, on records made by hand."""

import numpy as np
import pytest
from fakes import followed

from evaluators.evaluation import Cost, Failure, FailureKind
from evaluators.objective import Objective
from evomerge.config import BudgetSettings
from evomerge.preferences import ChebyshevSettings, ConstraintSettings
from evomerge.records import CandidateRecord, EvaluationRecord, Measured
from evomerge.stopping import MOST_ANSWERS_IN_A_ROW

TWO = (Objective(task="first"), Objective(task="second"))


def candidate(number, *values, origin="optimizer", documents=10, answered_from=None, failed=False, told_at=None):
    scores = {o.name: Measured(v, None, None) for o, v in zip(TWO, values, strict=False)}
    failure = Failure(FailureKind.NON_FINITE, "no") if failed else None
    told_at = number if told_at is None else told_at
    cost = Cost(documents=documents)
    evaluation = EvaluationRecord(number, "search", "d", scores, failure, cost, told_at, answered_from, 0.0)
    return CandidateRecord(
        number, number, origin, None, None, "{}", str(number), (), None, 0.0, evaluations={"search": evaluation}
    )


def stopping(budget, candidates, objectives=1):
    return followed(BudgetSettings(**budget), TWO[:objectives], candidates, documents=10)


def test_evaluations_are_spent_by_failures_and_flights_but_not_by_answers():
    some = [candidate(0, 0.1), candidate(1, failed=True), candidate(2, 0.1, answered_from=0)]
    spent = stopping({"evaluations": 3}, some)
    assert spent.evaluations == 2
    assert spent.reason() is None
    assert spent.reason(in_flight=1) == "the budget of 3 evaluations is spent"


def test_documents_are_counted_as_measured_and_in_flight_as_whole_candidates():
    raced = [candidate(0, 0.1, documents=10), candidate(1, 0.1, documents=4)]
    spent = stopping({"documents": 30}, raced)
    assert spent.documents == 14
    assert spent.reason(in_flight=1) is None
    assert spent.reason(in_flight=2) == "the budget of 30 documents is spent"


def test_hours():
    spent = stopping({"hours": 0.5}, [])
    assert spent.reason(seconds=1799) is None
    assert spent.reason(seconds=1800) == "0.5 hours have passed"


def test_plateau_counts_from_the_seeds_and_from_what_is_better_by_more_than_the_tolerance():
    budget = {"plateau": 3, "plateau_tolerance": 0.05}
    seeds = [candidate(i, 0.5 - i / 10, origin="seed") for i in range(5)]
    assert stopping(budget, seeds).reason() is None
    worse = [candidate(5 + i, 0.54) for i in range(3)]
    assert stopping(budget, seeds + worse[:2]).reason() is None
    assert stopping(budget, seeds + worse).reason() == "no better joint score in 3 evaluations"
    better = candidate(8, 0.56)
    assert stopping(budget, [*seeds, *worse, better]).reason() is None


def test_small_steps_add_up_to_a_better_score():
    rising = [candidate(i, 0.5 + 0.02 * i) for i in range(30)]
    assert stopping({"plateau": 4, "plateau_tolerance": 0.05}, rising).reason() is None


def test_stall_asks_for_growth_of_the_whole_front():
    budget = {"stall": 3, "plateau": 1000}
    first = [candidate(0, 0.2, 0.8), candidate(1, 0.8, 0.2)]
    dominated = [candidate(2 + i, 0.1, 0.1) for i in range(3)]
    assert stopping(budget, first + dominated[:2], objectives=2).reason() is None
    stopped = stopping(budget, first + dominated, objectives=2).reason()
    assert stopped == "hypervolume has grown by no more than 0.10% in 3 evaluations"
    wider = candidate(5, 0.5, 0.5)  # no better joint score, but more of the front
    assert stopping(budget, [*first, *dominated, wider], objectives=2).reason() is None
    hair = candidate(5, 0.8001, 0.2)
    assert stopping(budget, [*first, *dominated, hair], objectives=2).reason() is not None


def test_stall_works_with_one_objective():
    same = [candidate(i, 0.5) for i in range(4)]
    assert stopping({"stall": 3}, same).reason() is not None


def test_an_optimizer_that_only_repeats_itself_has_ended():
    known = [candidate(0, 0.5)] + [candidate(i, 0.5, answered_from=0) for i in range(1, MOST_ANSWERS_IN_A_ROW + 1)]
    assert stopping({}, known[:-1]).reason() is None
    assert "1,000 known candidates in a row" in stopping({}, known).reason()
    assert stopping({}, [*known, candidate(5000, 0.5)]).reason() is None


def test_order_is_that_of_the_tells_not_of_the_candidates():
    late = [candidate(0, 0.9, told_at=3), candidate(1, 0.1, told_at=0), candidate(2, 0.1, told_at=1)]
    assert stopping({"plateau": 2}, late).reason() is None


@pytest.mark.parametrize("rule", ["plateau", "stall"])
def test_rules_are_off_unless_asked_for(rule):
    assert getattr(BudgetSettings(), rule) is None
    assert stopping({}, [candidate(i, 0.5) for i in range(900)]).reason() is None


def test_plateau_is_one_of_the_number_that_is_preferred():
    """The mean rises with the stronger objective alone; the one that falls shortest stays."""
    lopsided = [candidate(i, 0.5 + i / 100, 0.4, told_at=i) for i in range(6)]
    budget = BudgetSettings(plateau=5)
    assert followed(budget, TWO, lopsided, documents=10).reason() is None
    limits = ConstraintSettings(limits={"second": 0.3})
    assert followed(budget, TWO, lopsided, limits, documents=10).reason() is None
    shortest = followed(budget, TWO, lopsided, ChebyshevSettings(), documents=10)
    assert shortest.reason() is None  # the mean that is mixed in still grows
    tolerant = BudgetSettings(plateau=5, plateau_tolerance=0.005)
    assert followed(tolerant, TWO, lopsided, documents=10).reason() is None
    shortest = followed(tolerant, TWO, lopsided, ChebyshevSettings(), documents=10)
    assert shortest.reason() == "no better joint score in 5 evaluations"


def test_minimised_objectives_are_turned():
    losses = (Objective(task="first", metric="perplexity", direction="minimize"),)
    falling = [
        CandidateRecord(
            i, i, "optimizer", None, None, "{}", str(i), (), None, 0.0,
            evaluations={"search": EvaluationRecord(i, "search", "d", {losses[0].name: Measured(float(v), None, None)},
                                                    None, Cost(), i, None, 0.0)},
        )
        for i, v in enumerate(np.linspace(9.0, 1.0, 9))
    ]  # fmt: skip
    follow = followed(BudgetSettings(plateau=2), losses, falling, documents=10)
    assert follow.reason() is None
