"""How good a search finds how soon, on the foundry's experts: every algorithm here and the search of mergekit-evolve.

Question: what do the recipes that each algorithm has found after so many evaluations score on test documents, and how
much hypervolume do they cover? Does the default reach mergekit-evolve's final test score with a third of its
evaluations?

Set-up: base, four experts and the three joint skills of the demo; task arithmetic with a weight for each expert in
each of six layer groups (24 genes); 64 search documents a skill, one worker of this process, one evaluation after
another, 300 evaluations. What cannot search that space searches the one it is for, beside CMA-ES on the same: one
weight for each expert (4 genes) for the quadratic surrogates, TIES with a weight and a density for each expert and
group (48 genes) for two_stage. `gp` has 100 evaluations, since its asks grow with their cube. Everything runs on the
same engine: mergekit-evolve takes part with its genome and its settings of CMA-ES (`mergekit_search.py`), not with its
own evaluator. The searches of evomerge begin with their nine seeds (base, experts, averages), which count. A run's seed
chooses the optimizer's draws and the documents: seeds 10 to 19, each with its own split. At each checkpoint the recipe
with the best joint search score so far is measured on 256 test documents a skill; hypervolume is that of all points on
search documents above 0. Seconds are CPU seconds of evaluations and of ask and tell.

Slower than one sitting: every finished run is a row of the results file, and running it again does what is missing,
ordered by seed, so that what is there is always comparable. Evaluations are remembered in the benchmarks' cache too.
Experts trained by another processor are other experts: a row names its own, and only rows of the same are compared.

Run: `.venv/bin/python benchmarks/search_quality.py [--seeds N] [--only SEARCH ...] [--tune | --confirm] [--draw]`:
about 10 CPU minutes a seed. Writes results/search_quality.json, prints the table that docs/search-quality.md shows and
draws docs/figures/search_quality_*.svg. With --tune it compares variants of the default on seeds 0 to 9 and other
experts; with --confirm what `auto` picks, which was chosen after seeing the runs of all, on seeds 20 to 39 and two
other sets of experts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import search_quality_table
from common import RESULTS, ROOT, experts, machine, name_of, save
from mergekit_search import MergekitSearch

from evaluators.evaluation import Evaluation
from evomerge import demo
from evomerge.archives.pareto import hypervolume
from evomerge.config import parse
from evomerge.foundry import Foundry
from evomerge.optimizers.contract import Observation, Optimizer
from evomerge.optimizers.registry import make_optimizer
from evomerge.optimizers.settings import Algorithm, algorithm
from evomerge.problem import Problem, prepare
from evomerge.worker import Worker
from search_spaces.genes import Genome
from search_spaces.parameter_space import ParameterSpace
from search_spaces.recipe import Recipe
from search_spaces.seeds import Seed, seeds


@dataclass(frozen=True)
class Entry:
    """One line of the table: an algorithm (None: mergekit-evolve's), what its space has of its own, its budget."""

    settings: Algorithm | None
    space: Mapping[str, Any] = field(default_factory=dict)
    evaluations: int = 300


NAME = "search_quality"
MERGEKIT, PRESELECTED = "mergekit-evolve", "cma_es, preselect 20, correlation 0.3"
PER_EXPERT, TIES = {"layer_groups": 1}, {"operator": "ties"}
SEARCHES: dict[str, Entry] = {
    MERGEKIT: Entry(None),
    "cma_es": Entry(algorithm("cma_es")),  # what `auto` picks here
    **{kind: Entry(algorithm(kind)) for kind in ("random", "nsga2", "tpe", "sobol")},
    PRESELECTED: Entry(algorithm("cma_es", preselect=20, correlation=0.3)),
    "gp": Entry(algorithm("gp"), evaluations=100),
    **{kind: Entry(algorithm(kind)) for kind in ("nsga3", "cycle_qd", "cat_cma", "natural_niches", "map_elites")},
    **{f"{kind}, 4 genes": Entry(algorithm(kind), PER_EXPERT, 100) for kind in ("map", "bayesian_map", "cma_es")},
    "nested_map, 4 genes": Entry(algorithm("nested_map"), PER_EXPERT, evaluations=50),
    **{f"{kind}, TIES": Entry(algorithm(kind), TIES) for kind in ("two_stage", "cma_es")},
}
VARIANTS: dict[str, Entry] = {  # for choosing defaults, on other seeds and experts than those reported
    "cma_es": Entry(algorithm("cma_es")),
    "cma_es, sigma 0.2": Entry(algorithm("cma_es", sigma=0.2)),
    "cma_es, separable": Entry(algorithm("cma_es", separable=True)),
    "cma_es, sigma 0.05": Entry(algorithm("cma_es", sigma=0.05)),
    "cma_es, correlation 0.3": Entry(algorithm("cma_es", correlation=0.3)),
    "cma_es, preselect 20": Entry(algorithm("cma_es", preselect=20)),
    PRESELECTED: SEARCHES[PRESELECTED],
}
CONFIRMED = {search: SEARCHES[search] for search in (MERGEKIT, "cma_es", PRESELECTED, "gp")}
CONFIRMED["gp, 300"] = Entry(algorithm("gp"), evaluations=300)  # would a larger budget be better spent on it?
CAMPAIGNS: dict[str, tuple[dict[str, Entry], dict[int, range]]] = {  # searches, seeds by the seed of their experts
    NAME: (SEARCHES, {0: range(10, 20)}),
    f"{NAME}_tuning": (VARIANTS, {1: range(10)}),
    f"{NAME}_confirmed": (CONFIRMED, {2: range(20, 30), 3: range(30, 40)}),
}
CHECKPOINTS = (25, 50, 75, 100, 150, 200, 250, 300)
ANY_WEIGHT = (0.0, 1000.0)  # mergekit-evolve has no upper bound


@dataclass(frozen=True)
class Measured:
    """What became of a recipe: (objectives,) values and the scores of their documents (None: it failed)."""

    values: np.ndarray | None
    documents: tuple[np.ndarray, ...] | None
    cpu_seconds: float


class Measurer:
    """Measures recipes of one split, and remembers what it measured."""

    def __init__(self, problem: Problem, models: str, seed: int) -> None:
        self._problem = problem
        self._worker: Worker | None = None
        self._path = ROOT / ".cache" / NAME / f"evaluations_{models}_{seed}_{problem.suite_digest[:12]}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        self._known = {tuple(row["key"]): row for row in map(json.loads, lines)}

    def measure(self, recipe: Recipe, split: str) -> Measured:
        """Return what became of ``recipe``, anew or as remembered."""
        row = self._known.get((recipe.digest, split)) or self._new(recipe, split)
        if row["documents"] is None:
            return Measured(None, None, row["cpu_seconds"])
        documents = tuple(np.array(list(answers), dtype=float) for answers in row["documents"])
        return Measured(np.array([scores.mean() for scores in documents]), documents, row["cpu_seconds"])

    def _new(self, recipe: Recipe, split: str) -> dict[str, Any]:
        if self._worker is None:
            self._worker = self._problem.worker_spec(device="cpu", threads=1)()
        outcome = self._worker.evaluate(recipe.model_dump_json(), dict(self._problem.documents(split).ids))
        documents = None
        if isinstance(outcome, Evaluation):  # right or wrong, document by document: a string of 1 and 0
            scores = [outcome.scores[name].documents for name in self._problem.objective_names]
            documents = ["".join("01"[int(right)] for right in each) for each in scores]
        row = {"key": [recipe.digest, split], "documents": documents, "cpu_seconds": outcome.cost.cpu_seconds}
        self._known[recipe.digest, split] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row


@dataclass
class Trace:
    """What one run has found so far."""

    points: list[np.ndarray] = field(default_factory=list)
    best: tuple[float, Recipe | None] = (-np.inf, None)
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, recipe: Recipe, measured: Measured) -> None:
        """Take in one evaluation."""
        self.seconds += measured.cpu_seconds
        if measured.values is not None:
            self.points.append(measured.values)
            if measured.values.mean() > self.best[0]:
                self.best = (float(measured.values.mean()), recipe)


def problem_of(entry: Entry, foundry: Foundry, seed: int) -> Problem:
    """The demo's search with documents chosen by ``seed``."""
    folder = Path.cwd()
    value: dict[str, Any] = demo.search_file(foundry, folder, budget=entry.evaluations, seed=seed)
    value["evaluation"] |= {"split_seed": seed, "test_documents": 256}
    value["space"] |= entry.space
    return prepare(parse(value, folder=folder, where=NAME))


def run(entry: Entry, foundry: Foundry, seed: int) -> dict[str, Any]:
    """Search once; return a row of the result."""
    problem, trace = problem_of(entry, foundry, seed), Trace()
    measurer = Measurer(problem, name_of(foundry), seed)
    optimizer, space = searcher(entry, problem, seed)
    given = list(seeds(space)) if entry.settings else []
    for counted, (recipe, genome) in enumerate(candidates(given, optimizer, space, trace, entry.evaluations), start=1):
        measured = measurer.measure(recipe, "search")
        trace.add(recipe, measured)
        started = time.process_time()
        was_given = counted <= len(given)
        optimizer.tell([Observation(genome, measured.values, seed=was_given, documents=measured.documents)])
        trace.seconds += time.process_time() - started
        if counted in CHECKPOINTS:
            trace.rows.append(checkpoint(trace, counted, measurer))
    stopped = getattr(optimizer, "would_have_stopped_at", None)
    return {"seed": seed, "checkpoints": trace.rows, "would_have_stopped_at": stopped}


def searcher(entry: Entry, problem: Problem, seed: int) -> tuple[Optimizer, ParameterSpace]:
    """The optimizer and the space whose genomes it proposes."""
    if entry.settings is not None:
        settings = entry.settings.model_copy(update={"seed": seed})
        return make_optimizer(settings, problem.setting()), problem.space
    space = problem.space
    wide = space.settings.model_copy(update={"weight": ANY_WEIGHT})
    free = ParameterSpace(wide, space.sources, space.expert_names, space.layers, space.dtype)
    models = len(space.expert_names)
    return MergekitSearch(genes=len(space.genes), models=models, seed=seed, evaluations=entry.evaluations), free


def candidates(
    given: list[Seed], optimizer: Optimizer, space: ParameterSpace, trace: Trace, evaluations: int
) -> Iterator[tuple[Recipe, Genome | None]]:
    """Yield the recipes to measure, the seeds of the space first, with their genomes."""
    yield from ((seed.recipe, seed.genome) for seed in given)
    for _ in range(evaluations - len(given)):
        started = time.process_time()
        genome = optimizer.ask(1)[0]
        trace.seconds += time.process_time() - started
        yield space.decode(genome), genome


def checkpoint(trace: Trace, evaluations: int, measurer: Measurer) -> dict[str, float]:
    """The state of a run: what its best recipe scores on test documents, and the hypervolume of all points."""
    score, recipe = trace.best
    test = measurer.measure(recipe, "test").values if recipe else None
    points = np.array(trace.points).reshape(len(trace.points), -1)
    return {
        "evaluations": evaluations,
        "search": score,
        "test": 0.0 if test is None else float(test.mean()),
        "hypervolume": hypervolume(points, np.zeros(points.shape[1])) if len(points) else 0.0,
        "cpu_seconds": trace.seconds,
    }


def recorded(name: str) -> list[dict[str, Any]]:
    """Return the rows of the runs that are finished."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def campaign(name: str, searches: dict[str, Entry], numbers: Sequence[int], foundry: Foundry) -> None:
    """Do the runs that are missing, all searches of a seed before the next seed."""
    rows, models = recorded(name), name_of(foundry)
    done = {(row["algorithm"], row["seed"]) for row in rows if row["experts"] == models}
    for seed in numbers:
        for search in [search for search in searches if (search, seed) not in done]:
            found = run(searches[search], foundry, seed)
            rows.append({"experts": models, "algorithm": search, **found, "commit": machine()["commit"]})
            last = rows[-1]["checkpoints"][-1]
            print(f"seed {seed} {search:30} test {last['test']:.3f} hypervolume {last['hypervolume']:.3f}", flush=True)
            save(name, {"rows": rows})


def main() -> None:
    """Do what is missing, print the table and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how many of the ten seeds of each set of experts")
    parser.add_argument("--only", nargs="+", metavar="SEARCH", help=f"some of {', '.join([*SEARCHES, *VARIANTS])}")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--tune", action="store_true", help="variants of the default instead, on seeds 0 to 9")
    other.add_argument("--confirm", action="store_true", help="what `auto` picks, on seeds 20 to 39 and other experts")
    parser.add_argument("--draw", action="store_true", help="no runs: only the table and the figures of what is there")
    chosen = parser.parse_args()
    name = f"{NAME}_tuning" if chosen.tune else f"{NAME}_confirmed" if chosen.confirm else NAME
    searches, numbers = CAMPAIGNS[name]
    if chosen.only:
        searches = {search: searches[search] for search in chosen.only}
    if not chosen.draw:
        for trained, ten in numbers.items():
            campaign(name, searches, ten[: chosen.seeds], experts(trained))
    rows = recorded(name)
    sets = search_quality_table.by_experts(rows)
    for models, found in sets.items():
        print(f"\nexperts {models}:\n\n{search_quality_table.markdown(found)}")
    if name != NAME:
        return
    most = max(sets.values(), key=len, default=[])  # the figures are of the experts with the most runs
    for path in search_quality_table.draw(most, ROOT / "docs" / "figures", name):
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
