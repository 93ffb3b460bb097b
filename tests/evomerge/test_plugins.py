"""Operators, objectives and optimizers that other packages bring: found, checked, versioned, kept from doing harm."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import problem, search_file

from evaluators.answers import Answers
from evaluators.errors import MeasurementFailed
from evaluators.gauges import _PlugInGauge
from evomerge import plugins
from evomerge.config import parse
from evomerge.errors import BadRecipe, BadSearch, CandidateFailed
from evomerge.export import export, read_recipe
from evomerge.merging.kernels import Scratch
from evomerge.merging.plugged import Plugged
from evomerge.optimizers.contract import Observation
from evomerge.optimizers.registry import make_optimizer
from evomerge.problem import check_unchanged
from evomerge.results import Results
from evomerge.store import Store
from search_spaces.genes import Genome
from search_spaces.recipe import Recipe

MODULE = """
from typing import ClassVar, Literal
from evaluators.objective_kinds import ObjectivePlugIn
from evomerge.optimizers.random_search import RandomSearch
from evomerge.optimizers.settings import OptimizerPlugIn
from search_spaces.operators import KnobSpec, OperatorPlugIn
from search_spaces.operators.base import WEIGHT, Weights

class Half(OperatorPlugIn):
    knobs: ClassVar = (WEIGHT, KnobSpec("bend", "bend", (0.5, 2.0), (0.0, 4.0), per_expert=False))
    kind: Literal["half"] = "half"
    weights: Weights
    bend: float
    lift: float = 0.0
    def merge(self, name, base, experts):
        return base + self.bend * sum(w * (e - base) for w, e in zip(self.weights, experts)) + self.lift

class Words(ObjectivePlugIn):
    kind: Literal["words"] = "words"
    def judge(self, documents, responses):
        return [len(texts[0].split()) for texts in responses]

class Draw(OptimizerPlugIn):
    kind: Literal["draw"] = "draw"
    step: float = 0.1
    def make(self, setting):
        return RandomSearch(setting.genes, seed=self.seed)

class Lame(OptimizerPlugIn):
    kind: Literal["lame"] = "lame"
    def make(self, setting):
        return object()

class Idle(OperatorPlugIn):
    kind: Literal["idle"] = "idle"

class Other(Half):
    pass
"""
POINTS = {
    "operators": {
        "half": "Half",
        "idle": "Idle",
        "other": "Other",
        "none": "Nothing",
        "text": "__name__",
        "ties": "Half",
    },
    "objectives": {"words": "Words"},
    "optimizers": {"draw": "Draw", "lame": "Lame", "nsga2": "Draw", "half": "Half"},
}


def install(folder, name="sample", version="1.0", points=POINTS, module=MODULE):
    """Write a distribution the way installers do."""
    (folder / f"{name}_plugins.py").write_text(module)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, named in points.items():
        lines.append(f"[evomerge.{group}]")
        lines += [f"{kind} = {name}_plugins:{place}" for kind, place in named.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path with the distribution `sample` 1.0."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder)
    monkeypatch.syspath_prepend(str(folder))
    plugins.forget()
    yield folder
    plugins.forget()
    sys.modules.pop("sample_plugins", None)


def file_value(tmp_path, **changes):
    return {**search_file(tmp_path).model_dump(mode="json"), **changes}


def parsed(tmp_path, **changes):
    return parse(file_value(tmp_path, **changes), folder=tmp_path, where="search.yaml")


HALF = {"operator": "half", "options": {"bend": [0.6, 1.2], "lift": 0.25}}


def test_an_operator_becomes_genes_recipes_and_digests(site, tmp_path):
    file = parsed(tmp_path, space=HALF)
    space = problem(file).space
    assert space.genes.names == ("weight/one", "weight/two", "bend")
    assert (space.genes.low[2], space.genes.high[2]) == (0.6, 1.2)
    recipe = space.decode(make_optimizer(file.optimizer, problem(file).setting()).ask(1)[0])
    operator = recipe.body.blocks[0].operator
    assert (operator.kind, operator.lift) == ("half", 0.25)
    again = Recipe.model_validate_json(recipe.to_json())
    assert again.digest == recipe.digest
    assert again.body.blocks[0].operator == operator
    assert json.loads(recipe.to_json())["body"]["blocks"][0]["operator"]["bend"] == operator.bend
    assert parse(file.model_dump(mode="json"), folder=tmp_path, where="again") == file


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"space": {"operator": "nothing"}}, "operator 'nothing' is not known"),
        (
            {"space": {"operator": "half", "options": {"bendd": [1, 2]}}},
            "unknown key 'bendd': did you mean 'bend'? (known: weight, bend,",
        ),
        ({"space": {"operator": "half", "options": {"bend": [2, 1]}}}, "low < high"),
        ({"space": {"operator": "half", "options": {"bend": [1, 5]}}}, "bend of half must lie within"),
        ({"space": {"operator": "dare_ties", "options": {"bend": [1, 2]}}}, "options is for operators that other"),
        ({"space": {"operator": "ties"}}, "operators 'ties': evomerge has one, and so does sample"),
        ({"optimizer": {"kind": "nsga2"}}, "optimizers 'nsga2': evomerge has one, and so does sample"),
        ({"space": {"operator": "none"}}, "operators 'none' of sample cannot be loaded: AttributeError"),
        ({"space": {"operator": "text"}}, "expected a subclass of search_spaces.operators.plugged.OperatorPlugIn"),
        ({"space": {"operator": "other"}}, "expected kind: Literal['other'] = 'other', got 'half'"),
        ({"space": {"operator": "idle"}}, "Idle lacks merge"),
        ({"optimizer": {"kind": "half"}}, "expected a subclass of evomerge.optimizers.settings.OptimizerPlugIn"),
        ({"optimizer": {"kind": "draw", "step": "x"}}, "optimizer.step: Input should be a valid number"),
        ({"optimizer": {"kind": "draw", "stepp": 1}}, "unknown key 'optimizer.stepp'"),
        ({"objectives": [{"kind": "words", "task": "t", "x": 1}]}, "unknown key 'objectives.0.x'"),
        ({"objectives": [{"kind": "wordz", "task": "t"}]}, "objectives.0: kind 'wordz' is not known"),
    ],
)
def test_mistakes_are_one_line(site, tmp_path, changes, expected):
    with pytest.raises(BadSearch) as caught:
        parsed(tmp_path, **{"optimizer": {"kind": "random"}, **changes})
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_packages_with_one_name_are_refused(site, tmp_path):
    install(site, "rival", points={"operators": {"half": "Half"}})
    with pytest.raises(BadSearch, match=r"half': (rival and sample|sample and rival) both bring one"):
        parsed(tmp_path, space=HALF)


def test_nothing_is_loaded_before_it_is_named(site, tmp_path):
    parsed(tmp_path, optimizer={"kind": "random"})
    assert "sample_plugins" not in sys.modules
    code = "import sys, evomerge.cli; print('evomerge.plugins' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_an_optimizer_is_made_from_its_section(site, tmp_path):
    file = parsed(tmp_path, optimizer={"kind": "draw", "seed": 3, "step": 0.5})
    assert file.optimizer.step == 0.5
    setting = problem(file).setting()
    one, other = (make_optimizer(file.optimizer, setting) for _ in range(2))
    assert one.ask(3) == other.ask(3)
    one.tell([Observation(one.ask(1)[0], np.zeros(2))])
    lame = parsed(tmp_path, optimizer={"kind": "lame"})
    with pytest.raises(ValueError, match="optimizer lame: expected ask and tell, got object"):
        make_optimizer(lame.optimizer, setting)


def test_the_plan_keeps_package_and_version_and_another_one_is_refused(site, tmp_path):
    changes = {"space": HALF, "optimizer": {"kind": "draw"}}
    file = parsed(tmp_path, **changes)
    plan = problem(file).plan()
    assert plan["plugins"] == [
        {"group": "operators", "name": "half", "package": "sample", "version": "1.0"},
        {"group": "optimizers", "name": "draw", "package": "sample", "version": "1.0"},
    ]
    recorded = file.model_dump(mode="json")
    check_unchanged(problem(file), recorded, plan)
    assert "plugins" not in problem(parsed(tmp_path, optimizer={"kind": "random"})).plan()
    (site / "sample-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sample\nVersion: 1.1\n")
    plugins.forget()
    with pytest.raises(BadSearch, match="operator 'half' of sample 1.0, and sample 1.1 is installed; install what it"):
        check_unchanged(problem(file), recorded, plan)


def test_a_record_says_which_package_it_needs(site, tmp_path, monkeypatch):
    file = parsed(tmp_path, space=HALF)
    store = Store(file.storage, create=True)
    record = store.create("fake", file=file.model_dump(mode="json"), plan=problem(file).plan())
    assert Results.of(record).file == file
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(site)])
    plugins.forget()
    with pytest.raises(BadSearch, match="'fake' uses operator 'half' of sample 1.0, which is not installed"):
        Results.of(record)
    store.close()


def test_a_recipe_says_which_packages_it_was_made_with_and_others_are_refused(site, tmp_path):
    file = parsed(tmp_path, space=HALF)
    store = Store(file.storage, create=True)
    record = store.create("fake", file=file.model_dump(mode="json"), plan=problem(file).plan())
    results = Results.of(record)
    space = problem(file).space
    half = space.decode(Genome(space.genes.start))
    candidate = SimpleNamespace(recipe=half)
    before, after, bare = (tmp_path / f"{name}.json" for name in ("before", "after", "bare"))
    export(results, candidate, before, kind="recipe")
    found = read_recipe(before)
    assert (found.packages, found.digest) == (("sample==1.0",), half.digest)
    bare.write_text(half.to_json())
    assert "packages" not in bare.read_text()
    assert read_recipe(bare).packages == ("sample==1.0",)
    (site / "sample-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sample\nVersion: 1.1\n")
    plugins.forget()
    expected = "made with sample==1.0, and sample==1.1 is installed, .*: pip install sample==1.0"
    with pytest.raises(BadRecipe, match=expected):
        read_recipe(before)
    with pytest.raises(BadRecipe, match=expected):
        export(results, candidate, tmp_path / "merged", kind="checkpoint")
    export(results, candidate, after, kind="recipe")
    assert after.read_text() == before.read_text()  # as measured, whatever is installed
    assert read_recipe(bare).packages == ("sample==1.1",)
    store.close()


def test_a_recipe_with_an_operator_that_is_not_there_is_refused(site, tmp_path, monkeypatch):
    file = parsed(tmp_path, space=HALF)
    recipe = problem(file).space.decode(make_optimizer(file.optimizer, problem(file).setting()).ask(1)[0])
    bare, named = tmp_path / "bare.json", tmp_path / "named.json"
    bare.write_text(recipe.to_json())
    named.write_text(plugins.with_packages(recipe).to_json())
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(site)])
    plugins.forget()
    with pytest.raises(BadRecipe, match="operator 'half' is not installed; .* with sample==1.0: pip install sample==1"):
        read_recipe(named)
    with pytest.raises(
        BadRecipe, match=r"blocks.0.operator: kind 'half' is not known.*if a plug-in brings it, install"
    ):
        read_recipe(bare)


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ([{"group": "operators", "name": "half", "version": "1.0"}], "plugins.0.package: Field required"),
        ([{"group": "operators", "name": "half", "package": 3, "version": "1.0"}], "plugins.0.package: Input"),
        ([7], "plugins.0: Input"),
        ({"half": "1.0"}, "plugins: Input"),
    ],
)
def test_what_a_record_says_of_its_plug_ins_is_checked(site, tmp_path, recorded, expected):
    file = parsed(tmp_path, space=HALF)
    plan = {**problem(file).plan(), "plugins": recorded}
    store = Store(file.storage, create=True)
    record = store.create("fake", file=file.model_dump(mode="json"), plan=plan)
    with pytest.raises(BadSearch, match=expected):
        Results.of(record)
    with pytest.raises(BadSearch, match=expected):
        check_unchanged(problem(file), file.model_dump(mode="json"), plan)
    store.close()


class Merge:
    """Stands for an operator: merges with a function."""

    kind = "sample"

    def __init__(self, merge):
        self.merge = merge


def merged(merge, *, scale=1.0, dtype=torch.bfloat16):
    base, expert = torch.arange(6.0), torch.ones(6)
    out = torch.empty(6, dtype=dtype)
    sources = [base.to(dtype), expert.to(dtype)]
    kernel = Plugged(Merge(merge), "layer.weight", (2, 3), 0, (1,), scale)
    scratch = Scratch(torch.device("cpu"))
    kernel.run(sources, out, scratch)
    assert torch.equal(sources[0], base.to(dtype))
    return out, scratch


def test_a_kernel_hands_out_copies_in_float32_and_shapes():
    def merge(name, base, experts):
        assert (name, base.shape, base.dtype) == ("layer.weight", (2, 3), torch.float32)
        base += experts[0]  # a plug-in that writes into what it gets
        return base

    out, scratch = merged(merge)
    assert out.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert scratch.healthy()


def test_a_scale_goes_from_the_base():
    out, _ = merged(lambda name, base, experts: base + 1.0, scale=2.0, dtype=torch.float32)
    assert out.tolist() == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_pieces_are_those_of_one_merge():
    calls = []

    def merge(name, base, experts):
        calls.append(name)
        return base + experts[0]

    kernel, scratch = Plugged(Merge(merge), "w", (2, 3), 0, (1,)), Scratch(torch.device("cpu"))
    sources = [torch.arange(6.0), torch.ones(6)]
    pieces = [torch.empty(4), torch.empty(2)]
    for _ in range(2):
        for piece, first in zip(pieces, (0, 4), strict=True):
            kernel.run(sources, piece, scratch, first)
        assert torch.cat(pieces).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    kernel.run(sources, pieces[1], scratch, 4)
    assert pieces[1].tolist() == [5.0, 6.0]
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        (lambda name, base, experts: base[0], r"expected a tensor of shape \[2, 3\], got \[3\]"),
        (lambda name, base, experts: None, r"expected a tensor of shape \[2, 3\], got NoneType"),
        (lambda name, base, experts: 1 / 0, "operator sample, tensor 'layer.weight': ZeroDivisionError"),
    ],
)
def test_an_operator_that_fails_fails_the_candidate(merge, expected):
    with pytest.raises(CandidateFailed, match=expected):
        merged(merge)


def test_what_is_not_finite_is_noticed():
    _, scratch = merged(lambda name, base, experts: base * float("nan"))
    assert not scratch.healthy()


class Judge:
    """Stands for an objective: judges with a function."""

    def __init__(self, judge):
        self.judge = judge


def judged(judge):
    gauge = _PlugInGauge("t/sample", np.array([0, 2]), Judge(judge), [{"id": 0}, {"id": 1}])
    return gauge.score(Answers(None, ("a", "b", "c")), {})


def test_an_objective_sees_documents_with_all_their_responses():
    def judge(documents, responses):
        assert [document["id"] for document in documents] == [0, 1]
        assert responses == [("a", "b"), ("c",)]
        return [1, 0.5]

    score = judged(judge)
    assert score.value == 0.75
    assert score.documents.tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (lambda documents, responses: [1.0], "expected a score for each of 2 documents"),
        (lambda documents, responses: [1.0, float("nan")], "not finite"),
        (lambda documents, responses: ["x", "y"], "ValueError"),
        (lambda documents, responses: 1 / 0, "objective t/sample: ZeroDivisionError"),
    ],
)
def test_an_objective_that_fails_fails_the_candidate(judge, expected):
    with pytest.raises(MeasurementFailed, match=expected):
        judged(judge)
