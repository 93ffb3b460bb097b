"""`auto`: explicit rules, recorded once."""

import numpy as np
import pytest
from fakes import problem, search_file

from evaluators.evaluation import Cost, Evaluation
from evomerge.estimate import _report
from evomerge.optimizers.choice import Choice, choose, resolve
from evomerge.optimizers.registry import make_optimizer
from evomerge.optimizers.setting import Setting
from evomerge.optimizers.settings import AutoSettings, CmaEsSettings, GpSettings, Nsga2Settings, TpeSettings
from evomerge.problem import check_unchanged
from evomerge.results import Results
from evomerge.runner import Machine, optimizer_settings, plan_to_record
from evomerge.store import Store
from search_spaces.genes import Gene, Genes
from search_spaces.mosaic import MosaicAlgebra
from search_spaces.tiles import TileGrid


@pytest.mark.parametrize(
    ("genes", "objectives", "budget", "kind"),
    [
        (10, 1, 60, "gp"),
        (30, 2, 100, "gp"),
        (31, 2, 100, "cma_es"),
        (10, 1, 101, "cma_es"),
        (10, 2, 599, "cma_es"),
        (10, 2, 600, "nsga2"),
        (100, 4, 6000, "nsga2"),
        (100, 2, 1000, "cma_es"),
        (10, 5, 1000, "cma_es"),
        (2000, 1, 1000, "cma_es"),
    ],
)
def test_rules(genes, objectives, budget, kind):
    choice = choose(setting_of([Gene(f"g{i}", 0.0, 1.0, 0.5) for i in range(genes)], objectives, budget))
    assert choice.kind == kind
    assert choice.reason.endswith(".")
    assert str(genes) in choice.reason
    assert str(budget) in choice.reason


@pytest.mark.parametrize(("genes", "centres", "foresight"), [(99, 0, True), (100, 0, False), (24, 12, False)])
def test_a_process_looks_ahead_of_cma_es_where_that_was_found_to_pay(genes, centres, foresight):
    setting = setting_of([Gene(f"g{i}", 0.0, 1.0, 0.5) for i in range(genes)], 3, 300, centres=centres)
    choice = choose(setting)
    assert ("Gaussian process" in choice.reason) == foresight
    found = resolve(AutoSettings(seed=5), choice)
    assert found == (CmaEsSettings(seed=5, preselect=20, correlation=0.3) if foresight else CmaEsSettings(seed=5))
    make_optimizer(found, setting)


def setting_of(genes, objectives, budget, **more):
    return Setting(Genes(tuple(genes)), np.ones(objectives), evaluations=budget, **more)


@pytest.mark.parametrize(("budget", "kind"), [(60, "cat_cma"), (599, "cat_cma"), (600, "nsga2")])
def test_whole_numbers_and_categories(budget, kind):
    genes = [Gene(f"g{i}", 0.0, 1.0, 0.5) for i in range(8)] + [Gene.integer("n", 0, 3, 1), Gene.categorical("c", 3)]
    choice = choose(setting_of(genes, 2, budget))
    assert choice.kind == kind
    if kind == "cat_cma":
        assert "2 of 10 genes are whole numbers or categories" in choice.reason


def test_mosaics_are_bred():
    mosaics = MosaicAlgebra(TileGrid.of({"weight": 8}, 8, (("all", ("*",)),)), np.eye(3)[None])
    choice = choose(setting_of([Gene("piece", 0.0, 1.0, 0.5)], 1, 40, mosaics=mosaics))
    assert choice.kind == "natural_niches"


def test_auto_must_be_resolved():
    settings = AutoSettings(seed=5)
    with pytest.raises(ValueError, match="expected the choice that the search began with"):
        resolve(settings, None)
    assert resolve(settings, Choice("nsga2", "because.")) == Nsga2Settings(seed=5)
    assert resolve(TpeSettings(), None) == TpeSettings()


def problem_of(settings, folder="/nowhere", **changes):
    return problem(search_file(folder, optimizer=settings.model_dump(), **changes))


def test_a_search_keeps_the_choice_it_began_with(tmp_path):
    settings = AutoSettings()
    begun = problem_of(settings, tmp_path, budget={"evaluations": 40})
    grown = problem_of(settings, tmp_path, budget={"evaluations": 5000})
    assert (begun.choice().kind, grown.choice().kind) == ("gp", "nsga2")
    store = Store(begun.file.storage, create=True)
    record = store.create("fake", file=begun.file.model_dump(mode="json"), plan=plan_to_record(begun))
    check_unchanged(grown, record.row.file, record.row.plan)
    assert optimizer_settings(record, grown.file) == GpSettings()
    assert record.row.plan["optimizer"] == {"kind": "gp", "reason": begun.choice().reason, "settings": None}
    assert Results.of(record).optimizer == "gp (auto)"
    store.close()


def test_a_search_keeps_its_settings_and_one_from_before_there_were_any_has_the_defaults(tmp_path):
    begun = problem_of(AutoSettings(), tmp_path, budget={"evaluations": 150})
    plan = plan_to_record(begun)
    store = Store(begun.file.storage, create=True)
    record = store.create("new", file=begun.file.model_dump(mode="json"), plan=plan)
    assert optimizer_settings(record, begun.file) == CmaEsSettings(preselect=20, correlation=0.3)
    old = {**plan, "optimizer": {key: plan["optimizer"][key] for key in ("kind", "reason")}}
    record = store.create("old", file=begun.file.model_dump(mode="json"), plan=old)
    assert optimizer_settings(record, begun.file) == CmaEsSettings()
    store.close()


def test_a_named_optimizer_leaves_the_plan_as_it_was():
    named = problem_of(Nsga2Settings())
    recorded = plan_to_record(named)
    assert "optimizer" not in recorded
    assert named.plan().items() <= recorded.items()
    assert named.choice() is None


def test_check_says_which_and_why():
    auto = problem_of(AutoSettings(), budget={"evaluations": 5000})
    measured = Evaluation("d", {}, cost=Cost(seconds=1.0, tokens=10))
    report = _report(auto, Machine("cpu", workers=1, threads=1), measured)
    line = next(line for line in report.lines() if line.startswith("optimizer"))
    assert line == f"optimizer  nsga2: {auto.choice().reason}"
    assert report.to_json()["optimizer"] == "nsga2"
