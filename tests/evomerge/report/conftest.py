"""Realistic records of searches that never ran: experts that are good at one task each, and merges in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.evaluation import Cost, Documents, Evaluation, Failure, FailureKind, Outcome, Score
from evomerge.config import SearchFile
from evomerge.inspection import Inspection
from evomerge.records import CandidateRecord, Split
from evomerge.results import Results
from evomerge.selection import SINGLE
from evomerge.store import SearchRecord, Store
from search_spaces.genes import Genome
from search_spaces.parameter_space import ParameterSpace
from search_spaces.recipe import Recipe, Source
from search_spaces.seeds import seeds, single_coefficient

TASKS = ("gsm8k_ja", "code_small", "medqa", "chat_quality")
SPLIT_SIZES: dict[Split, int] = {"search": 120, "validation": 80, "test": 160}
DIGESTS = ["%064x" % (7**40 * (i + 3)) for i in range(12)]


class FakeSearch:
    """Writes the record of one search step by step."""

    def __init__(self, store: Store, file: SearchFile, *, layers: int = 12, seed: int = 0) -> None:
        self.file = file
        self.rng = np.random.default_rng(seed)
        settings = (file.sources.base, *file.sources.experts)
        self.space = ParameterSpace(
            settings=file.space,
            sources=tuple(Source(path=s.path, digest=d) for s, d in zip(settings, DIGESTS, strict=False)),
            expert_names=tuple(s.short_name for s in file.sources.experts),
            layers=layers,
        )
        self.documents = {
            split: Documents({o.task: tuple(range(1000 * i, 1000 * i + size)) for o in file.objectives})
            for i, (split, size) in enumerate(SPLIT_SIZES.items())
        }
        self.record: SearchRecord = store.create(file.name, file=file.model_dump(mode="json"), plan=self._plan())
        self.count = 0
        self._told = 0

    def _plan(self) -> dict[str, Any]:
        return {
            "sources": [source.model_dump(mode="json") for source in self.space.sources],
            "expert_names": list(self.space.expert_names),
            "layers": self.space.layers,
            "genes": list(self.space.genes.names),
            "suite": "s" * 64,
            "inspection": self._inspection().record(),
            "documents": {
                split: {task: list(ids) for task, ids in documents.ids.items()}
                for split, documents in self.documents.items()
            },
        }

    def _inspection(self) -> Inspection:
        experts, layers = self.space.expert_names, self.space.layers
        sums = self.rng.uniform(0.5, 2.0, (len(experts), 3, layers + 2, 3)) * [1.0, 1.0, 1e-3]
        sums[:, :2, [0, -1]] = 0.0  # nothing but the rest lies before and behind the layers
        return Inspection(experts, True, 12 * layers, (0,) * len(experts), sums)

    def quality(self, recipe: Recipe) -> np.ndarray:
        """(objectives,) chance of answering a document: expert k helps task k, too much weight hurts all."""
        rows = []
        for block in recipe.body.blocks:
            weights = np.array(getattr(block.operator, "weights", (0.5, 0.5)))
            rows.append(weights[-len(self.space.expert_names) :])
        weights = np.mean(rows, axis=0)
        spread = np.std(rows, axis=0).mean() if len(rows) > 1 else 0.0
        total = weights.sum()
        own = np.array([weights[k % len(weights)] for k in range(len(self.file.objectives))])
        logits = -1.2 + 3.6 * own - 1.6 * own**2 + 0.9 * (total - own) - 0.32 * total**2 + 0.8 * spread
        return np.asarray(1.0 / (1.0 + np.exp(-logits)))

    def outcome(self, recipe: Recipe, split: Split) -> Outcome:
        """Bernoulli documents; an objective that is minimised is an error in nats with no plain interval."""
        size, tokens = SPLIT_SIZES[split], 61 * SPLIT_SIZES[split]
        cost = Cost(seconds=2.5, merge_seconds=0.4, forward_seconds=1.9, cpu_seconds=2.2, tokens=tokens, documents=size)
        scores = {}
        for objective, chance in zip(self.file.objectives, self.quality(recipe), strict=True):
            if objective.direction == "minimize":
                documents = self.rng.gamma(4.0, 2.0 - chance, size)
            else:
                documents = (self.rng.random(size) < chance).astype(float)
            error = float(documents.std(ddof=1) / np.sqrt(size))
            scores[objective.name] = Score(float(documents.mean()), error, documents)
        return Evaluation(self.documents[split].digest, scores, {}, cost)

    def add(
        self, recipe: Recipe, *, measured: bool = True, failure: FailureKind | None = None, **about: Any
    ) -> CandidateRecord:
        """Record one candidate and what its search evaluation gave."""
        candidate = self.record.add_candidate(self.count, recipe, **about)
        self.count += 1
        if failure:
            message = "logits are NaN <b>after</b> layer 3"
            return self.measure(candidate, "search", Failure(failure, message, Cost(seconds=1.0)))
        return self.measure(candidate, "search") if measured else candidate

    def measure(self, candidate: CandidateRecord, split: Split, outcome: Outcome | None = None) -> CandidateRecord:
        """Add an evaluation on ``split``."""
        told = None
        if split == "search":
            told, self._told = self._told, self._told + 1
        result = outcome or self.outcome(candidate.recipe, split)
        digest = self.documents[split].digest
        return self.record.add_evaluation(candidate, split, result, documents_digest=digest, told_at=told)

    def add_seeds(self) -> None:
        """Base, experts, uniform average and the classical merges."""
        for seed in seeds(self.space):
            self.add(seed.recipe, origin="seed", name=seed.name, genome=seed.genome)

    def add_candidates(self, count: int, *, fail_every: int = 0, learns: bool = True) -> None:
        """``count`` genomes that narrow down on good weights as an optimizer's would, or stay uniform."""
        genes = self.space.genes
        for i in range(count):
            width = 0.35 * (1.0 - 0.8 * i / count)
            near = (
                self.rng.normal(0.1 + 0.4 * min(1.0, 2.0 * i / count), width, len(genes)) * (genes.high - genes.low)
                + genes.low
            )
            values = near if learns else self.rng.uniform(genes.low, genes.high)
            genome = Genome(np.clip(values, genes.low, genes.high))
            failed = fail_every and i % fail_every == fail_every - 1
            kind = (FailureKind.NON_FINITE, FailureKind.TIMED_OUT)[i % 2] if failed else None
            self.add(self.space.decode(genome), origin="optimizer", genome=genome, failure=kind)

    def conclude(self) -> None:
        """Validation of the front and of a grid of single coefficients, tests of the winner and references."""
        for candidate in self.results.front[: self.file.budget.finalists]:
            self.measure(candidate, "validation")
        for coefficient in (0.25, 0.5, 0.75):
            recipe = single_coefficient(self.space, coefficient)
            name = f"{SINGLE} {coefficient:.3g}"
            baseline = self.add(recipe, measured=False, origin="baseline", name=name)
            tested = self.measure(baseline, "validation")
            self.measure(tested, "test")
        results = self.results
        assert results.winner
        for candidate in {c.number: c for c in (results.winner, *results.references)}.values():
            self.measure(candidate, "test")

    @property
    def results(self) -> Results:
        """What the record says now."""
        return Results.of(self.record.store.search(self.file.name))


MakeSearch = Callable[..., FakeSearch]


def search_file(name: str = "ja-math", *, storage: str, **changes: Any) -> SearchFile:
    """A search file over three experts and four objectives."""
    value: dict[str, Any] = {
        "name": name,
        "sources": {"base": "models/base", "experts": ["models/math", "models/coder", "models/doctor"]},
        "space": {"layer_groups": 4, "tensor_groups": ["self_attn", "mlp"]},
        "objectives": [{"task": task} for task in TASKS],
        "budget": {"evaluations": 60, "finalists": 6},
        "storage": storage,
    }
    return SearchFile.model_validate({**value, **changes})


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """URL of a database that is not there yet."""
    return f"sqlite:///{tmp_path / 'evomerge.db'}"


@pytest.fixture
def store(storage: str) -> Iterator[Store]:
    """An empty store."""
    store = Store(storage, create=True)
    yield store
    store.close()


@pytest.fixture
def make_search(store: Store, storage: str) -> MakeSearch:
    """Make a search without candidates in the store: ``make_search(name, layers=, seed=, **file_changes)``."""

    def make(name: str = "ja-math", *, layers: int = 12, seed: int = 0, **changes: Any) -> FakeSearch:
        return FakeSearch(store, search_file(name, storage=storage, **changes), layers=layers, seed=seed)

    return make


@pytest.fixture
def finished(make_search: MakeSearch) -> FakeSearch:
    """A finished search with four objectives and some failures."""
    search = make_search()
    search.add_seeds()
    search.add_candidates(52, fail_every=9)
    search.conclude()
    return search


@pytest.fixture
def random_search(make_search: MakeSearch) -> FakeSearch:
    """The finished random search to compare with."""
    search = make_search("ja-math.random", optimizer={"kind": "random"}, seed=1)
    search.add_seeds()
    search.add_candidates(40, learns=False)
    search.conclude()
    return search
