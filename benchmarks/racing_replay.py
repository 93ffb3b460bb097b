"""What racing costs in quality, on many more seeds than real searches allow: CMA-ES replayed on a regressed landscape.

Question: at equal documents, is racing better than searching on fewer documents, or with fewer candidates? Searches of
the demo are recorded once, 192 documents a task and 2,150 candidates. A small network is fitted to the recorded scores:
of each document the chance to be solved, given the genome (joint score of candidates held out: correlation 0.99). Every
search of the replay draws which documents it searches on (64 a task), validates on (64) and is tested on (64), and
whether a candidate solves one: by a threshold that is half the document's own and half the candidate's. Optimizer,
races and blocks are evomerge's own. The winner is the best of 32 finalists on search and validation documents together;
`test` is its expected score on the test documents. All arms of a seed share documents and thresholds; differences are
paired.

Run: `.venv/bin/python benchmarks/racing_replay.py [--table FILE]` (ten minutes on one idle core, half of them to
record the table unless FILE is there). Writes results/racing_replay.json after every arm.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import experts, save

from evaluators.blockwise import BlockwiseEvaluator
from evaluators.evaluation import Cost, Documents, Evaluation, Floats, Score
from evaluators.objective import MinibatchSettings, Objective, RacingSettings
from evaluators.statistics import mean_interval
from evomerge import demo
from evomerge.best_known import BestKnown
from evomerge.config import parse
from evomerge.foundry import Foundry
from evomerge.minibatches import Minibatches
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.contract import Observation
from evomerge.racing import Referee
from evomerge.records import CandidateRecord, EvaluationRecord, Measured
from evomerge.runner import run
from search_spaces.genes import Gene, Genes, Genome

HIGH = 1.5  # the demo's weights lie in [0, 1.5]
TASKS, PART = 3, 64
RECORDED = (("cma_es", 100, 700), ("cma_es", 101, 700), ("cma_es", 102, 500), ("random", 103, 250))
SEEDS_OF_SEARCH = 7  # base, experts, uniform average, task arithmetic: the table begins with them
FINALISTS = 32
SEEDS = range(32)


@dataclass(frozen=True)
class Arm:
    """A way to search: how many candidates (or documents), how many documents of each task, how they race, on how many
    minibatches, and whether the middle of the distribution is asked for, too."""

    name: str
    candidates: float = 400
    documents: int = PART
    spent: float = np.inf
    racing: RacingSettings | None = None
    minibatches: int | None = None
    centres: int = 0


FULL = 400 * TASKS * PART
ARMS = (
    Arm("without"),
    Arm("racing", racing=RacingSettings()),
    Arm("racing, first 16", racing=RacingSettings(first=16)),
    Arm("racing, first 16, threshold 0.2", racing=RacingSettings(first=16, threshold=0.2)),
    Arm("32 documents a task", documents=32),
    Arm("24 documents a task", documents=24),
    Arm("200 candidates", candidates=200),
    Arm("four minibatches", minibatches=4, centres=12),
    Arm("middles", centres=12),
    Arm("racing, as many documents as without", candidates=np.inf, spent=FULL, racing=RacingSettings()),
    Arm("24 documents a task, as many documents as without", candidates=FULL / 24 / TASKS, documents=24),
)


Searches = Sequence[tuple[str, int, int]]  # algorithm, seed, evaluations


def record(path: Path, foundry: Foundry, searches: Searches, documents: int) -> None:
    """Search the demo with ``documents`` a task; keep genomes and (candidates, tasks, documents) scores."""
    genomes, scores = [], []
    for kind, seed, evaluations in searches:
        with tempfile.TemporaryDirectory() as folder:
            value: dict[str, Any] = demo.search_file(foundry, Path(folder), budget=evaluations, seed=seed)
            value["optimizer"] = {"kind": kind, "seed": seed}
            value["evaluation"] |= {"search_documents": documents, "validation_documents": 8, "test_documents": 8}
            value["baselines"] = {"single_coefficient": 0, "random_search": False}
            value["cluster"] = {"backend": "in_process", "workers": 1}
            results = run(parse(value, folder=Path(folder), where="benchmark"))
            for candidate in results.candidates:
                evaluation = candidate.evaluations.get("search")
                if candidate.genome is None or evaluation is None or evaluation.answered_from is not None:
                    continue
                rows = [results.record.document_scores(evaluation, name) for name in results.chooser.names]
                genomes.append(candidate.genome.values)
                scores.append(np.stack(rows))
    np.savez_compressed(path, genomes=np.array(genomes), scores=np.array(scores).astype(np.uint8))


class Landscape:
    """Chances to solve each document, as a function of the genome: two hidden layers of 96 units, fitted by AdamW."""

    def __init__(self, genomes: Floats, scores: Floats, *, epochs: int = 60, rate: float = 3e-3) -> None:
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(1)
        order = np.random.default_rng(0).permutation(len(genomes))
        held, fitted = order[:200], order[200:]
        x = torch.tensor(genomes / HIGH * 2.0 - 1.0, dtype=torch.float32)
        y = torch.tensor(scores.reshape(len(scores), -1), dtype=torch.float32)
        linear, tanh = torch.nn.Linear, torch.nn.Tanh()
        net = torch.nn.Sequential(linear(x.shape[1], 96), tanh, linear(96, 96), tanh, linear(96, y.shape[1]))
        optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-2)
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = rate * (1.0 - epoch / epochs)
            for batch in torch.tensor(np.random.default_rng(epoch).permutation(fitted)).split(64):
                optimizer.zero_grad()
                torch.nn.functional.binary_cross_entropy_with_logits(net(x[batch]), y[batch]).backward()
                optimizer.step()
        self._weights = [p.detach().double().numpy() for p in net.parameters()]
        joint = np.array([[self(g).mean(), s.mean()] for g, s in zip(genomes[held], scores[held], strict=True)])
        self.correlation = float(np.corrcoef(joint.T)[0, 1])
        self.error = float(np.sqrt(np.square(joint[:, 0] - joint[:, 1]).mean()))

    def __call__(self, genome: Floats) -> Floats:
        """Return (tasks, documents) chances."""
        a, b, c, d, e, f = self._weights
        states = np.tanh(c @ np.tanh(a @ (genome / HIGH * 2.0 - 1.0) + b) + d)
        return np.asarray(1.0 / (1.0 + np.exp(-(e @ states + f)))).reshape(TASKS, -1)


@dataclass
class World:
    """The documents of one seed: search, validation and test, 64 a task each; an evaluator whose models are genomes."""

    landscape: Landscape
    seed: int
    known: dict[Genome, tuple[Floats, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 0])
        self.order = np.stack([rng.permutation(3 * PART) for _ in range(TASKS)])
        self.thresholds = rng.random((TASKS, 3 * PART))

    def look(self, genome: Genome) -> tuple[Floats, float]:
        """Return (tasks, documents) scores, and the expected score on the test documents."""
        if genome not in self.known:
            rng = np.random.default_rng([self.seed, *np.frombuffer(genome.values.tobytes(), np.uint32).tolist()])
            chances = np.take_along_axis(self.landscape(genome.values), self.order, axis=1)
            own = rng.random(chances.shape) < 0.5
            thresholds = np.where(own, rng.random(chances.shape), self.thresholds)
            self.known[genome] = (chances > thresholds).astype(float), float(chances[:, 2 * PART :].mean())
        return self.known[genome]

    def evaluate(self, model: Any, documents: Documents) -> Evaluation:
        """Return the scores of a genome."""
        rows = {f"{task}/acc": self.look(model)[0][int(task), list(ids)] for task, ids in documents.ids.items()}
        scores = {name: Score(float(row.mean()), None, row) for name, row in rows.items()}
        return Evaluation(documents.digest, scores, cost=Cost(documents=documents.count))


def search(arm: Arm, world: World, seeds: Floats) -> dict[str, float]:
    """Run one search; return the documents it took and what its winner scores."""
    objectives = tuple(Objective(task=str(k)) for k in range(TASKS))
    documents = Documents({o.task: tuple(range(arm.documents)) for o in objectives})
    genomes: list[Genome] = []

    def read(evaluation: EvaluationRecord, name: str) -> Floats:
        return world.look(genomes[evaluation.id])[0][int(name.split("/")[0]), : arm.documents]

    noisy = arm.minibatches is not None
    optimizer = CmaEs(genes(seeds.shape[1]), weights=np.ones(TASKS), seed=world.seed, centres=arm.centres, noisy=noisy)
    best = BestKnown(objectives, read)
    minibatches = None
    if arm.minibatches:
        settings = MinibatchSettings(count=arm.minibatches)
        minibatches = Minibatches(documents, settings, objectives, optimizer, best)
    referee = Referee(best, arm.racing, single_number=True) if arm.racing else None
    blockwise = BlockwiseEvaluator(world, objectives)
    spent, full = 0, []
    while len(genomes) < min(arm.candidates, 20_000) and spent < arm.spent:
        number, seed = len(genomes), len(genomes) < len(seeds)
        genome = Genome(seeds[number]) if seed else optimizer.ask(1)[0]
        genomes.append(genome)
        race = referee.race() if referee and not seed else None
        if minibatches:
            candidate = _record(number, None, seed=seed, genome=genome)
            part = minibatches.task(candidate).documents
            outcome = minibatches.estimated(candidate, world.evaluate(genome, part))
        else:
            outcome = blockwise.evaluate(genome, documents, race) if race else world.evaluate(genome, documents)
        assert isinstance(outcome, Evaluation)
        spent += outcome.cost.documents
        full += [genome] if outcome.stopped is None else []
        if referee or minibatches:
            best.see(_record(number, outcome, seed=seed, genome=genome))
        values = np.array([outcome.scores[o.name].value for o in objectives])
        optimizer.tell([Observation(genome, values, seed=seed, estimated=outcome.stopped is not None)])
    joint = np.array([world.look(genome)[0][:, : arm.documents].mean() for genome in full])
    finalists = [full[i] for i in np.argsort(-joint, kind="stable")[:FINALISTS]]
    winner = max(finalists, key=lambda genome: world.look(genome)[0][:, : 2 * PART].mean())
    spent += FINALISTS * TASKS * (PART - arm.documents)  # what finalists of searches on few documents see besides
    return {"documents": spent, "candidates": len(genomes), "test": world.look(winner)[1]}


def genes(count: int) -> Genes:
    """Return the demo's genes."""
    return Genes(tuple(Gene(f"g{i}", 0.0, HIGH, 0.25) for i in range(count)))


def _record(number: int, outcome: Evaluation | None, *, seed: bool, genome: Genome) -> CandidateRecord:
    origin: Any = "seed" if seed else "optimizer"
    candidate = CandidateRecord(number, number, origin, None, genome, "", "", (), None, 0.0)
    if outcome is None:
        return candidate
    measured = {name: Measured(score.value, None, None) for name, score in outcome.scores.items()}
    evaluation = EvaluationRecord(
        number, "search", "", measured, None, outcome.cost, number, None, 0.0, stopped=outcome.stopped
    )
    return replace(candidate, evaluations={"search": evaluation})


def summary(rows: list[dict[str, float]], without: list[dict[str, float]]) -> dict[str, Any]:
    """Return the arm's means, and its paired differences to the search without racing."""

    def of(found: list[dict[str, float]], key: str) -> Floats:
        return np.array([row[key] for row in found])

    difference = of(rows, "test") - of(without, "test")
    return {
        "candidates": float(of(rows, "candidates").mean()),
        "times_fewer_documents": float(of(without, "documents").sum() / of(rows, "documents").sum()),
        "test": float(of(rows, "test").mean()),
        "difference": float(difference.mean()),
        "interval": mean_interval(difference) if difference.any() else None,
    }


def landscape_of(trained: int, searches: Searches, documents: int) -> tuple[Landscape, Floats, dict[str, Any]]:
    """Return the landscape of the table that the command line names, recorded if it is not there, on the experts of
    the foundry's seed ``trained``; the (candidates, dim) genomes that were recorded; how good the fit is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", type=Path, help="recorded scores; recorded there if the file is missing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.table or Path(folder) / "table.npz"
        if not path.exists():
            record(path, experts(trained), searches, documents)
        table = np.load(path)
        genomes, scores = table["genomes"], table["scores"].astype(float)
    landscape = Landscape(genomes, scores)
    print(f"held-out joint score: correlation {landscape.correlation:.3f}, error {landscape.error:.3f}", flush=True)
    fit = {"candidates": len(genomes), "correlation": landscape.correlation, "error": landscape.error}
    return landscape, genomes, fit


def main() -> None:
    """Replay all arms, printing each."""
    landscape, genomes, fit = landscape_of(0, RECORDED, 3 * PART)
    found: dict[str, Any] = {}
    rows: Mapping[str, list[dict[str, float]]] = {arm.name: [] for arm in ARMS}
    for arm in ARMS:
        for seed in SEEDS:
            rows[arm.name].append(search(arm, World(landscape, seed), genomes[:SEEDS_OF_SEARCH]))
        found[arm.name] = summary(rows[arm.name], rows["without"])
        print(arm.name, found[arm.name], flush=True)
        save("racing_replay", {"searches": len(SEEDS), "landscape": fit, "arms": found})


if __name__ == "__main__":
    main()
