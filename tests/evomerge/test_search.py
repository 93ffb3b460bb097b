"""The loop on fakes: budget, seeds, failures, answers from the record, selection, and resuming by replay."""

from dataclasses import replace

import pytest
from fake_search import DieAfter, Stop, finish, genomes, started
from fakes import FakeSpec, UnequalWorkers, problem, search_file

from cluster.pool import Finished, Lost, Returned
from evomerge.dispatch import MOST_NODES
from evomerge.errors import BadSearch, BadSource
from evomerge.losses import ATTEMPTS, Losses
from evomerge.optimizers.settings import algorithm
from evomerge.problem import check_optimizer, check_unchanged
from evomerge.runner import random_variant


def test_spends_exactly_the_budget_and_measures_seeds_first(tmp_path):
    results = finish(search_file(tmp_path))
    searched = [c for c in results.candidates if "search" in c.evaluations]
    assert results.spent == 40
    fresh = [c for c in searched if c.evaluations["search"].answered_from is None]
    assert len(fresh) == 40
    assert [c.label for c in results.candidates[:4]] == ["base", "one", "two", "uniform average"]
    assert results.state == "finished"


def test_winner_is_chosen_on_validation_and_tested_once_beside_its_references(tmp_path):
    results = finish(search_file(tmp_path))
    validated = [c for c in results.candidates if "validation" in c.evaluations and c.origin != "baseline"]
    assert 1 <= len(validated) <= 5
    best = max(validated, key=lambda c: results.chooser.number(c, "validation"))
    assert results.winner.number == best.number
    tested = {c.label for c in results.candidates if "test" in c.evaluations}
    assert {"base", "one", "two", "uniform average", results.winner.label} <= tested
    assert [row.role for row in results.table()][-2:] == ["single coefficient", "winner"]


def test_search_beats_the_seeds(tmp_path):
    results = finish(search_file(tmp_path, budget={"evaluations": 150}))
    numbers = {c.label: results.chooser.number(c, "test") for c in results.candidates if "test" in c.evaluations}
    assert numbers[results.winner.label] == max(numbers.values())


def test_equal_recipes_are_answered_from_the_record(tmp_path):
    # Between neighbouring floats there are only two weights, so genomes must repeat.
    file = search_file(tmp_path, space={"weight": [0.5, 0.5000000000000001]})
    with started(file) as search:
        search.run()
        answered = [c for c in search.candidates.values() if c.evaluations and c.evaluations["search"].answered_from]
        assert answered
        source = {c.evaluations["search"].id: c for c in search.candidates.values() if c.evaluations}
        for candidate in answered:
            original = source[candidate.evaluations["search"].answered_from]
            assert original.recipe_digest == candidate.recipe_digest
            assert original.evaluations["search"].scores == candidate.evaluations["search"].scores


@pytest.mark.parametrize("dies_after", [1, 3, 9, 17, 30])
def test_a_killed_driver_continues_with_the_same_genomes(tmp_path, dies_after):
    for folder in ("unbroken", "killed"):
        (tmp_path / folder).mkdir()
    unbroken = finish(search_file(tmp_path / "unbroken"))
    file = search_file(tmp_path / "killed")
    with pytest.raises(Stop), started(file, watcher=DieAfter(dies_after)) as search:
        search.run()
    resumed = finish(file)
    assert genomes(resumed) == genomes(unbroken)
    assert resumed.spent == unbroken.spent == 40
    assert resumed.winner.recipe_digest == unbroken.winner.recipe_digest


@pytest.mark.parametrize("kind", ["nsga2", "tpe", "gp", "sobol"])
def test_every_optimizer_continues_after_a_kill(tmp_path, kind):
    settings = {"optimizer": {"kind": kind, "seed": 3}, "budget": {"evaluations": 22, "finalists": 5}}
    unbroken = finish(search_file(tmp_path, name="unbroken", **settings))
    broken = search_file(tmp_path, name="broken", **settings)
    with pytest.raises(Stop), started(broken, watcher=DieAfter(17)) as search:
        search.run()
    assert genomes(finish(broken)) == genomes(unbroken)


def test_candidate_recorded_but_not_evaluated_is_dispatched_again(tmp_path):
    file = search_file(tmp_path)
    with pytest.raises(Stop), started(file, watcher=DieAfter(12)) as search:
        search.run()
    with started(file) as search:
        genome = search._optimizer.ask(1)[0]
        search._add(
            search.problem.space.decode(genome),
            origin="optimizer",
            genome=genome,
            asked_at=search._next_in_sequence(),
        )
    results = finish(file)
    assert all(c.state != "waiting" for c in results.candidates if c.origin != "baseline")
    assert results.spent == 40


def test_several_workers_resume_too(tmp_path):
    file = search_file(tmp_path, cluster={"backend": "in_process", "workers": 3})
    with pytest.raises(Stop), started(file, watcher=DieAfter(20)) as search:
        search.run()
    results = finish(file)
    assert results.spent == 40
    asked = sorted(c.asked_at for c in results.candidates if c.asked_at is not None)
    assert len(asked) == len(set(asked))


def test_a_record_that_the_optimizer_does_not_repeat_is_refused(tmp_path):
    with started(search_file(tmp_path)) as search:
        search.run()
    other = search_file(tmp_path, optimizer={"seed": 4})
    with pytest.raises(BadSearch, match="proposes another genome"), started(other):
        pass


def test_failures_are_recorded_with_their_kind_and_the_search_goes_on(tmp_path):
    results = finish(search_file(tmp_path), FakeSpec(fail_above=0.9))
    assert results.failures.get("non_finite", 0) > 0
    assert results.spent == 40
    assert results.winner is not None


def test_an_exception_in_the_worker_is_a_failure_not_the_end(tmp_path):
    results = finish(search_file(tmp_path), FakeSpec(raise_above=0.9))
    failed = [c for c in results.candidates if c.state == "failed"]
    assert failed
    assert "ZeroDivisionError: the worker stumbled" in failed[0].evaluations["search"].failure.message


def test_too_many_failures_stop_the_search_with_the_reason(tmp_path):
    with (
        pytest.raises(BadSearch, match="evaluations failed .*non_finite.*document 3"),
        started(search_file(tmp_path), FakeSpec(fail_above=-1.0)) as search,
    ):
        search.run()


def test_another_tokenizer_is_noticed_where_the_record_knows_the_first(tmp_path):
    file = search_file(tmp_path)
    before, other, older = (replace(problem(file), tokenizers=t) for t in (("a", None), ("a", "b"), ()))
    recorded = file.model_dump(mode="json")
    check_unchanged(before, recorded, before.plan())
    with pytest.raises(BadSource, match="/one: the tokenizer's files have changed since search 'fake' began"):
        check_unchanged(other, recorded, before.plan())
    assert "tokenizers" not in older.plan()  # as versions before wrote it
    check_unchanged(other, recorded, older.plan())


def test_more_budget_continues_a_finished_search(tmp_path):
    finish(search_file(tmp_path))
    results = finish(search_file(tmp_path, budget={"evaluations": 60}))
    assert results.spent == 60


def test_a_minimised_objective_is_turned_around(tmp_path):
    file = search_file(tmp_path, objectives=[{"task": "first", "direction": "minimize"}], budget={"evaluations": 60})
    results = finish(file)
    values = [c.values("search", ("first/acc",))[0] for c in results.candidates if c.state == "measured"]
    assert results.front[0].values("search", ("first/acc",))[0] == min(values)


class DyingPool:
    """A pool whose workers die with every call of some candidates."""

    workers = free = 1

    def __init__(self, worker, dies, *, with_node=False):
        self.worker, self.dies, self.out, self.tickets = worker, dies, [], 0
        self.lost = Lost("killed by signal 9", with_node)

    def submit(self, call):
        outcome = self.lost if self.dies() else Returned(self.worker.evaluate(*call.arguments))
        self.out.append(Finished(self.tickets, outcome))
        self.tickets += 1
        self.free = 0
        return self.tickets - 1

    def wait(self, timeout_seconds=None):
        out, self.out, self.free = self.out, [], 1
        return out

    def need(self, calls):
        pass

    def close(self):
        pass


def test_a_lost_worker_is_tried_again_and_then_recorded(tmp_path):
    deaths = iter([False, True, True, False] + [True] * ATTEMPTS + [False] * 1000)
    pool = DyingPool(FakeSpec()(), lambda: next(deaths))
    with started(search_file(tmp_path), pool=pool) as search:
        search.run()
        states = [c.state for c in search.candidates.values()]
    assert states[:4] == ["measured", "measured", "failed", "measured"]
    failure = search.candidates[2].evaluations["search"].failure
    assert failure.kind == "worker_lost"
    assert failure.message == "quarantined: 3 workers died with this candidate; the last: killed by signal 9"


def test_a_candidate_that_kills_workers_is_not_tried_afresh_by_the_next_driver(tmp_path):
    file = search_file(tmp_path)

    def then_stop(*deaths):
        yield from deaths
        raise Stop

    for deaths in (then_stop(False, True), then_stop(True), then_stop(True, False)):  # the second candidate, each time
        with pytest.raises(Stop), started(file, pool=DyingPool(FakeSpec()(), lambda d=deaths: next(d))) as search:
            search.run()
    with started(file) as search:
        for _ in range(ATTEMPTS + 1):  # a driver that died before it could record the failure
            Losses(search.record).add(3, "search", "out of memory")
    with started(file) as search:
        search.run()
        failures = {c.number: c.evaluations["search"].failure.message for c in failed(search.candidates.values())}
    assert failures == {
        1: "quarantined: 3 workers died with this candidate; the last: killed by signal 9",
        3: "quarantined: 4 workers died with this candidate; the last: out of memory",
    }


def failed(candidates):
    return [candidate for candidate in candidates if candidate.state == "failed"]


def test_nodes_that_are_lost_are_not_the_candidates_fault(tmp_path):
    for deaths, expected in ((MOST_NODES - 1, 0), (MOST_NODES, 1)):
        left = iter([True] * deaths + [False] * 1000)
        pool = DyingPool(FakeSpec()(), lambda left=left: next(left), with_node=True)
        with started(search_file(tmp_path, name=f"after-{deaths}"), pool=pool) as search:
            search.run()
            assert len(failed(search.candidates.values())) == expected


def test_an_optimizer_that_cannot_search_the_space_is_refused_before_anything_is_spent(tmp_path):
    with pytest.raises(BadSearch, match="^optimizer two_stage needs genes for densities and weights"):
        check_optimizer(problem(search_file(tmp_path, optimizer={"kind": "two_stage"})))
    check_optimizer(problem(search_file(tmp_path, optimizer={"kind": "two_stage"}, space={"operator": "ties"})))


# ---------------------------------------------------------------- stopping


def test_plateau_ends_a_search_and_the_record_says_why(tmp_path):
    results = finish(search_file(tmp_path, budget={"evaluations": 2000, "plateau": 25}))
    assert results.spent < 2000
    assert results.stop_reason == "no better joint score in 25 evaluations"
    assert results.state == "finished"
    numbers = [results.chooser.number(c, "search") for c in told(results)]
    assert max(numbers[-25:]) <= max(numbers[:-25])


def test_documents_end_a_search_with_less_than_a_candidate_too_many(tmp_path):
    results = finish(search_file(tmp_path, budget={"documents": 1000}))
    assert 1000 <= results.costs["search"].documents < 1080
    assert results.stop_reason == "the budget of 1,000 documents is spent"


def test_a_search_that_was_killed_stops_at_the_same_evaluation(tmp_path):
    budget = {"evaluations": 2000, "stall": 20}
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = finish(search_file(tmp_path / "whole", budget=budget))
    file = search_file(tmp_path / "killed", budget=budget)
    with pytest.raises(Stop), started(file, watcher=DieAfter(17)) as search:
        search.run()
    assert genomes(finish(file)) == genomes(whole)


def test_a_larger_budget_lets_a_stopped_search_go_on(tmp_path):
    first = finish(search_file(tmp_path, budget={"evaluations": 2000, "plateau": 15}))
    more = finish(search_file(tmp_path, budget={"evaluations": 2000, "plateau": 40}))
    assert more.spent > first.spent


def test_random_variant_searches_at_random(tmp_path):
    variant = random_variant(search_file(tmp_path, optimizer={"kind": "cma_es", "sigma": 0.1, "seed": 5}))
    assert variant.optimizer == algorithm("random", seed=5)


def told(results):
    return sorted(
        (c for c in results.candidates if "search" in c.evaluations and c.evaluations["search"].told_at is not None),
        key=lambda c: c.evaluations["search"].told_at,
    )


# ---------------------------------------------------------------- workers of unequal speed


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
def test_no_worker_waits_while_budget_is_left(tmp_path, workers):
    evaluations = 150
    pool = UnequalWorkers(FakeSpec()(), workers)
    file = search_file(tmp_path, budget={"evaluations": evaluations}, cluster={"backend": "in_process"})
    with started(file, pool=pool) as search:
        search.run()
    assert pool.submitted == evaluations
    assert pool.busy_when_waiting[: evaluations - workers] == [workers] * (evaluations - workers)
    assert workers == 1 or pool.order != sorted(pool.order)  # some did overtake others
