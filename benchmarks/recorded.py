"""Large records of searches that never ran, written in bulk: what readers of the record are measured on."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from common import ROOT

from evaluators.evaluation import Cost, Documents
from evomerge.config import SearchFile
from evomerge.records import pack_scores
from evomerge.schema import candidates, evaluations, scores, searches
from evomerge.store import Store
from search_spaces.genes import Genome
from search_spaces.parameter_space import ParameterSpace
from search_spaces.recipe import Recipe, Source
from search_spaces.seeds import seeds

TASKS = ("math_ja", "code")
DOCUMENTS = {"search": 200, "validation": 100, "test": 400}
LAYERS = 24
RECIPES = 500  # different genomes; later candidates repeat them, with scores of their own
BATCH = 10_000
SPREAD = 0.02  # standard deviation of a candidate's true quality around what its place in the search lets expect


@contextmanager
def large_search(count: int) -> Iterator[str]:
    """Give the URL of a database with a search `big` of ``count`` candidates, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{Path(folder) / 'evomerge.db'}"
        write_search(storage, "big", count)
        yield storage


def said_by(script: str, *arguments: str) -> dict[str, Any]:
    """Return the JSON that ``script`` prints in a process of its own."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_search(storage: str, name: str, count: int, *, seed: int = 0) -> None:
    """Write a search of ``count`` candidates that have come back, as an optimizer that learns would leave it.

    Args:
        storage: URL of the database, made if it is not there.
        count: candidates, the seeds among them.
    """
    rng = np.random.default_rng(seed)
    file = SearchFile.model_validate(
        {
            "name": name,
            "sources": {"base": "models/base", "experts": ["models/math", "models/coder", "models/japanese"]},
            "space": {"layer_groups": 4, "tensor_groups": ["self_attn", "mlp"]},
            "objectives": [{"task": task} for task in TASKS],
            "budget": {"evaluations": 2 * count},
            "storage": storage,
        }
    )
    space = _space(file)
    documents = {split: Documents({task: tuple(range(n)) for task in TASKS}) for split, n in DOCUMENTS.items()}
    store = Store(storage, create=True)
    record = store.create(name, file=file.model_dump(mode="json"), plan=_plan(space, documents))
    known = _recipes(space, rng)
    first = [(s.name, s.genome, s.recipe) for s in seeds(space)]
    began = time.time() - 3.0 * count
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        rows = [_rows(record.row.id, n, count, first, known, documents, began, rng) for n in numbers]
        store.database.write(partial(_insert, rows=rows), done=lambda connection: None)
    spent = sa.update(searches).values(seconds=3.0 * count, created=began)
    store.database.write(lambda connection: connection.execute(spent), done=lambda connection: None)
    store.close()


def _space(file: SearchFile) -> ParameterSpace:
    sources = (file.sources.base, *file.sources.experts)
    return ParameterSpace(
        settings=file.space,
        sources=tuple(Source(path=s.path, digest=f"{i:064x}") for i, s in enumerate(sources)),
        expert_names=tuple(s.short_name for s in file.sources.experts),
        layers=LAYERS,
    )


def _plan(space: ParameterSpace, documents: dict[str, Documents]) -> dict[str, Any]:
    return {
        "sources": [source.model_dump(mode="json") for source in space.sources],
        "expert_names": list(space.expert_names),
        "layers": space.layers,
        "genes": list(space.genes.names),
        "suite": "s" * 64,
        "documents": {split: {t: list(ids) for t, ids in d.ids.items()} for split, d in documents.items()},
    }


def _recipes(space: ParameterSpace, rng: np.random.Generator) -> list[tuple[Genome, Recipe, str, str]]:
    genes = space.genes
    genomes = [Genome(rng.uniform(genes.low, genes.high)) for _ in range(RECIPES)]
    recipes = [space.decode(genome) for genome in genomes]
    return [(g, r, r.to_json(), r.digest) for g, r in zip(genomes, recipes, strict=True)]


def _rows(
    search: int,
    number: int,
    count: int,
    first: list[tuple[str, Genome | None, Recipe]],
    known: list[tuple[Genome, Recipe, str, str]],
    documents: dict[str, Documents],
    began: float,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """One candidate, its evaluation on search documents, its scores."""
    if number < len(first):
        name, genome, recipe = first[number]
        text, digest = recipe.to_json(), recipe.digest
        quality = np.full(2, 0.25) + 0.2 * rng.random(2)
    else:
        name, (genome, _, text, digest) = None, known[number % len(known)]
        share, angle = 0.3 + 0.5 * (number / count) ** 0.3, rng.uniform(0.0, np.pi / 2)
        quality = share * np.array([np.cos(angle), np.sin(angle)]) + rng.normal(0.0, SPREAD, 2)
    began += 3.0 * number
    candidate = {
        "search_id": search,
        "number": number,
        "origin": "seed" if name else "optimizer",
        "name": name,
        "genome": genome.to_bytes() if genome else None,
        "recipe": text,
        "recipe_digest": digest,
        "parents": "[]",
        "asked_at": None if name else 2 * number,
        "created": began,
    }
    cost = Cost(2.5 + rng.random(), 0.4, 1.9, 2.2, 1.8, 61 * DOCUMENTS["search"], 2 * DOCUMENTS["search"])
    failed = number % 97 == 96
    evaluation = {
        "search_id": search,
        "split": "search",
        "documents_digest": documents["search"].digest,
        "told_at": 2 * number + 1,
        "answered_from": None,
        "failure_kind": "timed_out" if failed else None,
        "failure_message": "no answer within 600 s" if failed else None,
        "stopped": None,
        "cost": json.dumps(asdict(cost)),
        "created": began + cost.seconds + rng.exponential(0.3),
    }
    solved = (rng.random((2, DOCUMENTS["search"])) < quality[:, None]).astype(float)
    measured = [
        {
            "objective": f"{task}/acc",
            "value": float(row.mean()),
            "standard_error": float(row.std(ddof=1) / np.sqrt(len(row))),
            "tie_break": None,
            "documents": pack_scores(row),
        }
        for task, row in zip(TASKS, solved, strict=True)
    ]
    return candidate, evaluation, [] if failed else measured


def _insert(connection: sa.Connection, rows: list[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]) -> None:
    first = (connection.execute(sa.select(sa.func.max(candidates.c.id))).scalar() or 0) + 1
    next_evaluation = (connection.execute(sa.select(sa.func.max(evaluations.c.id))).scalar() or 0) + 1
    connection.execute(candidates.insert(), [{**row, "id": first + i} for i, (row, _, _) in enumerate(rows)])
    connection.execute(
        evaluations.insert(),
        [{**row, "id": next_evaluation + i, "candidate_id": first + i} for i, (_, row, _) in enumerate(rows)],
    )
    connection.execute(
        scores.insert(),
        [{**row, "evaluation_id": next_evaluation + i} for i, (_, _, each) in enumerate(rows) for row in each],
    )
